//! What the plugin prints, in the words of each version.

use model::cni::{Address, Attached, Failure, Interface};
use serde_json::{Map, Value, json};

use crate::Version;

/// Returns an `ADD`'s result.
pub fn result(version: Version, attached: &Attached) -> Value {
    let interfaces: Vec<Value> = attached
        .interfaces
        .iter()
        .map(|interface| described(version, interface))
        .collect();
    let ips: Vec<Value> = attached
        .ips
        .iter()
        .map(|address| addressed(version, address))
        .collect();

    json!({
        "cniVersion": version.as_str(),
        "interfaces": interfaces,
        "ips": ips,
        "routes": attached.routes,
        "dns": {},
    })
}

/// Returns an error; `version` is what the runtime speaks, as far as that is known.
pub fn error(version: Option<Version>, failure: &Failure) -> Value {
    let version = version.unwrap_or(Version::V1_1_0);
    let mut said = json!({
        "cniVersion": version.as_str(),
        "code": failure.code.number(),
        "msg": failure.msg,
    });
    if !failure.details.is_empty() {
        said["details"] = json!(failure.details);
    }

    said
}

/// Returns which versions are spoken, in answer to a runtime of `asked`.
pub fn versions(asked: Option<&str>) -> Value {
    let all = Version::ALL.map(Version::as_str);

    json!({
        "cniVersion": asked.unwrap_or(Version::V1_1_0.as_str()),
        "supportedVersions": all,
    })
}

fn described(version: Version, interface: &Interface) -> Value {
    let mut said = Map::from_iter([("name".to_owned(), json!(interface.name))]);
    if !interface.mac.is_empty() {
        said.insert("mac".to_owned(), json!(interface.mac));
    }
    if let Some(mtu) = interface.mtu
        && version >= Version::V1_1_0
    {
        said.insert("mtu".to_owned(), json!(mtu));
    }
    if !interface.sandbox.is_empty() {
        said.insert("sandbox".to_owned(), json!(interface.sandbox));
    }

    Value::Object(said)
}

fn addressed(version: Version, address: &Address) -> Value {
    let mut said = json!({ "address": address.address });
    if version < Version::V1_0_0 {
        let is_v4 = address.address.addr().is_ipv4();
        said["version"] = json!(if is_v4 { "4" } else { "6" });
    }
    if let Some(gateway) = address.gateway {
        said["gateway"] = json!(gateway);
    }
    if let Some(interface) = address.interface {
        said["interface"] = json!(interface);
    }

    said
}

#[cfg(test)]
mod tests {
    use model::cni::{Code, Route};

    use super::*;

    fn attached() -> Attached {
        Attached {
            interfaces: vec![
                Interface {
                    name: "cali0".to_owned(),
                    mac: "ee:ee:ee:ee:ee:ee".to_owned(),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".to_owned(),
                    mtu: Some(1420),
                    sandbox: "/run/netns/x".to_owned(),
                    ..Interface::default()
                },
            ],
            ips: vec![Address {
                address: "10.65.0.1/32".parse().unwrap(),
                gateway: None,
                interface: Some(1),
            }],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some([169, 254, 1, 1].into()),
            }],
        }
    }

    #[test]
    fn each_version_gets_the_fields_that_it_has() {
        let said = |version| result(version, &attached());

        let newest = said(Version::V1_1_0);
        assert_eq!(newest["interfaces"][1]["mtu"], 1420);
        assert_eq!(newest["ips"][0]["version"], Value::Null);
        assert_eq!(newest["routes"][0]["gw"], "169.254.1.1");
        let middle = said(Version::V1_0_0);
        assert_eq!(middle["interfaces"][1]["mtu"], Value::Null);
        assert_eq!(middle["ips"][0]["version"], Value::Null);
        let old = said(Version::V0_4_0);
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][0]["interface"], 1);
        assert_eq!(old["cniVersion"], "0.4.0");
    }

    #[test]
    fn an_error_has_its_code_and_the_runtimes_version() {
        let said = error(Some(Version::V0_3_1), &Failure::new(Code::TryLater, "soon"));

        assert_eq!(
            said,
            json!({"cniVersion": "0.3.1", "code": 11, "msg": "soon"})
        );
    }
}
