//! What the CNI plugin asks, in the words of [`model::cni`].
//!
//! ```text
//! POST /v1/cni/add      Attachment  → Attached, once the pod's policy is live
//! POST /v1/cni/del      Attachment  → null, also for what was never there
//! POST /v1/cni/check    Examination → null, once the kernel has what was answered then
//! POST /v1/cni/gc       Survivors   → null
//! POST /v1/cni/status   a network   → null, when pods can be attached
//! ```
//!
//! Everything else is a [`Failure`] with its code.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ::cni::{Tombstones, tombstone::Tombstone};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use model::{
    PodName,
    action::PodAnswer,
    cni::{
        Address, Attached, Attachment, AttachmentKey, CniName, Code, Examination, Failure,
        Interface, Route, Survivors, Wishes,
    },
    constant::{POD_GATEWAY_V4, POD_GATEWAY_V6, WORKLOAD_MAC},
    event::PodRequest,
};
use tokio::{
    sync::mpsc,
    time::{self, timeout},
};

use super::api::{self, Ask};

/// How long a pod's policy may take to be live where the configuration does not say.
const POLICY: Duration = Duration::from_secs(30);

/// How long a `CHECK` waits for the kernel.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often somebody looks for tombstones: the plugin leaves one while the agent is away, or too slow.
const REPLAY: Duration = Duration::from_secs(5);

/// Longest name of a pod that has only its container's id.
const LABEL_MAX: usize = 63;

type Asks = mpsc::Sender<Ask>;

pub(super) fn routes() -> Router<Asks> {
    Router::new()
        .route("/v1/cni/add", post(add))
        .route("/v1/cni/del", post(del))
        .route("/v1/cni/check", post(check))
        .route("/v1/cni/gc", post(collect))
        .route("/v1/cni/status", post(status))
}

/// Carries out the removals that no agent heard, for as long as the process lives.
pub(super) async fn replay(tombstones: Tombstones, asks: Asks) -> anyhow::Result<()> {
    let mut interval = time::interval(REPLAY);
    loop {
        interval.tick().await;
        let found = match tombstones.list() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "Removals that were noted for later cannot be read");
                continue;
            }
        };
        for stone in found {
            replay_one(&stone, &asks).await;
        }
    }
}

async fn replay_one(stone: &Tombstone, asks: &Asks) {
    let path = stone.path.display();
    let over = match &stone.attachment {
        Ok(attachment) => {
            if let Err(failure) = detach(asks, attachment.key.clone()).await {
                tracing::warn!(%failure, %path, "A removal that was noted for later has to wait");
                return;
            }
            tracing::info!(attachment = %attachment.key, "A removal that was noted for later is done");
            stone.clear()
        }
        Err(error) => {
            tracing::error!(%error, %path, "A removal that was noted for later is not understood; its file is set aside");
            stone.set_aside()
        }
    };
    if let Err(error) = over {
        tracing::warn!(%error, %path, "A removal stays noted");
    }
}

async fn add(State(asks): State<Asks>, Json(attachment): Json<Attachment>) -> Response {
    answer(attach(&asks, &attachment).await)
}

async fn del(State(asks): State<Asks>, Json(attachment): Json<Attachment>) -> Response {
    answer(detach(&asks, attachment.key).await)
}

async fn check(State(asks): State<Asks>, Json(examination): Json<Examination>) -> Response {
    answer(examine(&asks, examination).await)
}

async fn collect(State(asks): State<Asks>, Json(survivors): Json<Survivors>) -> Response {
    let collected = api::ask(&asks, |reply| Ask::Collect(survivors, reply)).await;

    answer(told(collected))
}

async fn status(State(asks): State<Asks>, Json(_network): Json<CniName>) -> Response {
    let ready = told(api::ask(&asks, Ask::Ready).await);

    answer(ready.map_err(|failure| Failure {
        code: Code::Unavailable,
        ..failure
    }))
}

/// A failed `ADD` leaves nothing behind: the runtime takes it for none.
async fn attach(asks: &Asks, attachment: &Attachment) -> Result<Attached, Failure> {
    let request = request(attachment)?;
    let seconds = attachment.wishes.policy_seconds;
    let patience = seconds.map_or(POLICY, |seconds| Duration::from_secs(seconds.into()));
    let pod = request.pod.clone();
    let asked = api::ask(asks, |reply| Ask::AddPod(Box::new(request), reply));
    let failure = match timeout(patience, asked).await {
        Ok(answered) => match told(answered) {
            Ok(pod) => return Ok(attached(attachment, &pod)),
            Err(failure) => failure,
        },
        Err(_) => Failure::new(
            Code::TryLater,
            format!(
                "{pod} has no interface with live policy after {} s; `meshctl status` says what is waited for",
                patience.as_secs()
            ),
        ),
    };
    detach(asks, attachment.key.clone()).await?;

    Err(failure)
}

async fn detach(asks: &Asks, key: AttachmentKey) -> Result<(), Failure> {
    told(api::ask(asks, |reply| Ask::Detach(key, reply)).await)
}

/// The pod is asked for again, which is answered once the kernel has all of it.
async fn examine(asks: &Asks, examination: Examination) -> Result<(), Failure> {
    let key = examination.attachment.key.clone();
    let broken = |msg: String| Failure::new(Code::Broken, msg);
    let going = || Failure::new(Code::TryLater, "the agent is going down");
    let request = api::ask(asks, |reply| Ask::Attached(key.clone(), reply))
        .await
        .ok_or_else(going)?
        .ok_or_else(|| broken(format!("{key} is not attached")))?;
    let pod = request.pod.clone();
    let asked = api::ask(asks, |reply| Ask::AddPod(request, reply));
    let now = timeout(PATIENCE, asked)
        .await
        .map_err(|_| broken(format!("{pod} is not whole in the kernel")))?;
    let now = attached(&examination.attachment, &told(now)?);
    let addresses = |attached: &Attached| -> Vec<IpAddr> {
        let nets = attached.ips.iter().map(|ip| ip.address.addr());
        nets.collect()
    };
    let (then, now) = (addresses(&examination.result), addresses(&now));
    let gone = now.iter().filter(|address| !then.contains(address));
    let new = then.iter().filter(|address| !now.contains(address));
    match gone.chain(new).next() {
        None => Ok(()),
        Some(address) => Err(broken(format!(
            "{pod} was answered {then:?} and has {now:?}: {address} differs"
        ))),
    }
}

/// What the loop of the agent answered.
fn told<T>(answered: Option<Result<T, String>>) -> Result<T, Failure> {
    match answered {
        Some(Ok(value)) => Ok(value),
        Some(Err(reason)) => Err(Failure::new(Code::Refused, reason)),
        None => Err(Failure::new(Code::TryLater, "the agent is going down")),
    }
}

fn answer<T: serde::Serialize>(answer: Result<T, Failure>) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(failure) => (StatusCode::CONFLICT, Json(failure)).into_response(),
    }
}

fn request(attachment: &Attachment) -> Result<PodRequest, Failure> {
    refuse_what_there_is_not(&attachment.wishes)?;
    let netns = attachment
        .netns
        .clone()
        .ok_or_else(|| Failure::new(Code::Environment, "CNI_NETNS is missing"))?;

    Ok(PodRequest {
        pod: pod_name(attachment)?,
        network: attachment.network.clone(),
        sandbox: attachment.key.container.as_str().to_owned(),
        netns,
        interface: attachment.key.interface.clone(),
        labels: BTreeMap::new(),
        service_account: None,
        addresses: attachment.wishes.addresses.clone(),
    })
}

/// A container of a runtime without pods is one of the namespace `default`, as with Calico.
fn pod_name(attachment: &Attachment) -> Result<PodName, Failure> {
    if let Some(pod) = &attachment.pod {
        return Ok(pod.clone());
    }
    let id = attachment.key.container.as_str().to_lowercase();
    let name = id.get(..LABEL_MAX).unwrap_or(&id);

    PodName::parse(&format!("default/{name}")).map_err(|error| {
        let msg = format!(
            "the container's id names no pod ({error}); pass K8S_POD_NAMESPACE and K8S_POD_NAME"
        );
        Failure::new(Code::Environment, msg)
    })
}

/// Wishes that the agent cannot fulfil are refused by the field that says them, never read over.
fn refuse_what_there_is_not(wishes: &Wishes) -> Result<(), Failure> {
    let asked = [
        ("mtu", wishes.mtu.is_some()),
        (
            "ipam.assign_ipv4 and assign_ipv6",
            !wishes.families.is_empty(),
        ),
        ("ipam.ipv4_pools and ipv6_pools", !wishes.pools.is_empty()),
        ("runtimeConfig.mac", wishes.mac.is_some()),
        (
            "container_settings.allow_ip_forwarding",
            wishes.allow_ip_forwarding,
        ),
        (
            "feature_control.ip_addrs_no_ipam",
            wishes.addresses_without_ipam,
        ),
        ("feature_control.floating_ips", wishes.floating_addresses),
        ("runtimeConfig.portMappings", !wishes.ports.is_empty()),
        ("runtimeConfig.bandwidth", wishes.bandwidth.is_some()),
    ];
    let unknown: Vec<&str> = asked
        .into_iter()
        .filter_map(|(field, is_asked)| is_asked.then_some(field))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }

    Err(Failure::new(
        Code::UnsupportedField,
        format!("this agent cannot do {}; leave it out", unknown.join(", ")),
    ))
}

fn attached(attachment: &Attachment, pod: &PodAnswer) -> Attached {
    let mac = WORKLOAD_MAC.map(|octet| format!("{octet:02x}")).join(":");
    let host = Interface {
        name: pod.host_interface.clone(),
        mac,
        mtu: Some(pod.mtu),
        sandbox: String::new(),
    };
    let inside = Interface {
        name: attachment.key.interface.as_str().to_owned(),
        mac: String::new(),
        mtu: Some(pod.mtu),
        sandbox: attachment.netns.clone().unwrap_or_default(),
    };
    let ips = pod.addresses.iter().map(|address| Address {
        address: *address,
        gateway: None,
        interface: Some(1),
    });
    let routes = pod.addresses.iter().map(|address| match address.addr() {
        IpAddr::V4(_) => Route {
            dst: ipnet::IpNet::new_assert(IpAddr::from([0; 4]), 0),
            gw: Some(POD_GATEWAY_V4.into()),
        },
        IpAddr::V6(_) => Route {
            dst: ipnet::IpNet::new_assert(IpAddr::from([0; 16]), 0),
            gw: Some(POD_GATEWAY_V6.into()),
        },
    });

    Attached {
        interfaces: vec![host, inside],
        ips: ips.collect(),
        routes: routes.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container: &str) -> Attachment {
        Attachment {
            key: AttachmentKey {
                container: CniName::parse(container).unwrap(),
                interface: "eth0".parse().unwrap(),
            },
            network: CniName::parse("mesh").unwrap(),
            netns: Some("/run/netns/x".to_owned()),
            pod: None,
            pod_uid: None,
            wishes: Wishes::default(),
        }
    }

    #[test]
    fn a_container_without_a_pod_is_one_of_the_default_namespace() {
        let id = "C0FFEE".repeat(11);
        let name = pod_name(&attachment(&id)).unwrap();

        assert_eq!(name.namespace, "default");
        assert_eq!(name.name, id.to_lowercase()[..63]);
        let named = pod_name(&attachment("under_score"));
        assert_eq!(named.unwrap_err().code, Code::Environment);
    }

    #[test]
    fn a_wish_that_cannot_be_fulfilled_is_named() {
        let mut asked = attachment("c0ffee");
        asked.wishes.mtu = Some(1400);
        asked.wishes.allow_ip_forwarding = true;

        let failure = request(&asked).unwrap_err();

        assert_eq!(failure.code, Code::UnsupportedField);
        assert!(
            failure
                .msg
                .contains("mtu, container_settings.allow_ip_forwarding"),
            "{failure}"
        );
    }
}
