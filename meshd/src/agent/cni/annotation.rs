//! What a pod's annotations, and its namespace's, ask of its interface: Calico's keys.
//!
//! An annotation that promises something is fulfilled or refused by its key, never read over.

use std::{collections::BTreeMap, net::IpAddr};

use model::{
    Family,
    pod::{BURST_DEFAULT, Limit},
};
use serde::de::DeserializeOwned;

use super::quantity;

/// Prefixes of Calico's keys.
const CNI: &str = "cni.projectcalico.org/";
const QOS: &str = "qos.projectcalico.org/";

/// Kubernetes' keys of the same meaning; Calico's outrank them.
const BANDWIDTH: [(&str, &str); 2] = [
    ("ingress", "kubernetes.io/ingress-bandwidth"),
    ("egress", "kubernetes.io/egress-bandwidth"),
];

/// What Calico's plugin writes there itself.
const WRITTEN: [&str; 3] = ["podIP", "podIPs", "containerID"];

/// Most entries of a list.
const LIST_MAX: usize = 64;

/// Bounds of a bandwidth in bits a second, of a burst in bits and of a burst at the peak rate in bytes (Calico's
/// documentation of these annotations).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
const BURSTS: std::ops::RangeInclusive<u64> = 1_000..=34_359_738_360;
const PEAKS: std::ops::RangeInclusive<u64> = 1_010..=1_010_000_000_000_000;
const PEAK_BURSTS: std::ops::RangeInclusive<u64> = 1_000..=100_000_000;

/// What annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) unmanaged: Vec<IpAddr>,
    pub(super) floating: Vec<IpAddr>,
    pub(super) pools: BTreeMap<Family, Vec<String>>,
    pub(super) families: Option<Vec<Family>>,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) ingress: Option<Limit>,
    pub(super) egress: Option<Limit>,
}

/// An annotation that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {key} {why}")]
pub(super) struct Unusable {
    key: String,
    why: String,
}

type Texts = BTreeMap<String, String>;

impl Annotations {
    /// Reads a pod's annotations, and of its namespace's those that count there too.
    pub(super) fn read(pod: &Texts, namespace: &Texts) -> Result<Self, Unusable> {
        let mut read = Self::default();
        for (key, text) in namespace {
            let name = key.strip_prefix(CNI).unwrap_or_default();
            if ["ipv4pools", "ipv6pools", "ipFamilies"].contains(&name) {
                read.take(key, name, text)?;
            }
        }
        for (key, text) in pod {
            if let Some(name) = key.strip_prefix(CNI) {
                read.take(key, name, text)?;
            }
        }
        if !read.addresses.is_empty() && !read.unmanaged.is_empty() {
            let why = "cannot stand beside ipAddrs";
            return Err(unusable(&format!("{CNI}ipAddrsNoIpam"), why));
        }
        for key in pod.keys().filter(|key| key.starts_with(QOS)) {
            refuse_unknown_limit(key)?;
        }
        read.ingress = limit(pod, 0)?;
        read.egress = limit(pod, 1)?;

        Ok(read)
    }

    fn take(&mut self, key: &str, name: &str, text: &str) -> Result<(), Unusable> {
        match name {
            "ipAddrs" => self.addresses = addresses(key, text)?,
            "ipAddrsNoIpam" => self.unmanaged = addresses(key, text)?,
            "floatingIPs" => self.floating = list(key, text)?,
            "ipv4pools" => self.take_pools(Family::V4, list(key, text)?),
            "ipv6pools" => self.take_pools(Family::V6, list(key, text)?),
            "ipFamilies" => self.families = Some(families(key, text)?),
            "hwAddr" => {
                let mac = ::cni::network::mac(text);
                let why = "is no MAC address of one host";
                self.mac = Some(mac.ok_or_else(|| unusable(key, why))?);
            }
            written if WRITTEN.contains(&written) => {}
            _ => return Err(unusable(key, "asks for something that meshd does not have")),
        }

        Ok(())
    }

    fn take_pools(&mut self, family: Family, pools: Vec<String>) {
        self.pools.insert(family, pools);
    }
}

fn unusable(key: &str, why: impl Into<String>) -> Unusable {
    Unusable {
        key: key.to_owned(),
        why: why.into(),
    }
}

fn list<T: DeserializeOwned>(key: &str, text: &str) -> Result<Vec<T>, Unusable> {
    let items: Vec<T> = serde_json::from_str(text).map_err(|error| {
        unusable(
            key,
            format!("is not a JSON list of the right kind: {error}"),
        )
    })?;
    if items.is_empty() || items.len() > LIST_MAX {
        return Err(unusable(key, format!("must have 1 to {LIST_MAX} entries")));
    }

    Ok(items)
}

/// Reads addresses, at most one of each family.
fn addresses(key: &str, text: &str) -> Result<Vec<IpAddr>, Unusable> {
    let found: Vec<IpAddr> = list(key, text)?;
    let of = |family| found.iter().filter(move |it| Family::of(**it) == family);
    if Family::BOTH
        .into_iter()
        .any(|family| of(family).count() > 1)
    {
        return Err(unusable(key, "has more than one address of a family"));
    }

    Ok(found)
}

fn families(key: &str, text: &str) -> Result<Vec<Family>, Unusable> {
    let words: Vec<String> = list(key, text)?;
    let family = |word: &String| match word.as_str() {
        "IPv4" => Ok(Family::V4),
        "IPv6" => Ok(Family::V6),
        _ => Err(unusable(
            key,
            format!("names {word:.20?}, neither IPv4 nor IPv6"),
        )),
    };

    words.iter().map(family).collect()
}

fn refuse_unknown_limit(key: &str) -> Result<(), Unusable> {
    let name = key.strip_prefix(QOS).unwrap_or(key);
    let of_direction = name
        .strip_prefix("ingress")
        .or_else(|| name.strip_prefix("egress"));
    let known = ["Bandwidth", "Burst", "Peakrate", "Minburst"];
    if of_direction.is_some_and(|rest| known.contains(&rest)) {
        return Ok(());
    }

    Err(unusable(key, "asks for a limit that meshd does not have"))
}

/// Reads the limits of one direction, an index into [`BANDWIDTH`].
fn limit(pod: &Texts, direction: usize) -> Result<Option<Limit>, Unusable> {
    let (direction, kubernetes) = BANDWIDTH[direction];
    let number = |name: &str, bounds: &std::ops::RangeInclusive<u64>| {
        let own = format!("{QOS}{direction}{name}");
        let other = (name == "Bandwidth").then(|| kubernetes.to_owned());
        let keys = [Some(own), other].into_iter().flatten();
        let found = keys.filter_map(|key| Some((pod.get(&key)?, key))).next();
        found
            .map(|(text, key)| {
                let value = quantity::parse(text).filter(|value| bounds.contains(value));
                let (least, most) = (bounds.start(), bounds.end());
                let why = || format!("is {text:.40?}, not a quantity from {least} to {most}");
                value
                    .ok_or_else(|| unusable(&key, why()))
                    .map(|value| (key, value))
            })
            .transpose()
    };
    let rate = number("Bandwidth", &RATES)?;
    let burst = number("Burst", &BURSTS)?;
    let peak = number("Peakrate", &PEAKS)?;
    let peak_burst = number("Minburst", &PEAK_BURSTS)?;
    let Some((_, rate)) = rate else {
        return match burst.or(peak).or(peak_burst) {
            Some((key, _)) => Err(unusable(&key, "needs a bandwidth beside it")),
            None => Ok(None),
        };
    };
    if let (Some((key, _)), None) = (&peak_burst, &peak) {
        return Err(unusable(key, "needs a peak rate beside it"));
    }
    if let Some((key, _)) = peak.as_ref().filter(|(_, peak)| *peak <= rate) {
        return Err(unusable(key, "is not above the bandwidth"));
    }

    Ok(Some(Limit {
        rate,
        burst: burst.map_or(BURST_DEFAULT, |(_, burst)| burst),
        peak: peak.map(|(_, peak)| peak),
        peak_burst: peak_burst.and_then(|(_, bytes)| u32::try_from(bytes).ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> Texts {
        let owned = pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        owned.collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Annotations, Unusable> {
        Annotations::read(&texts(pairs), &Texts::new())
    }

    #[test]
    fn a_pods_word_outranks_its_namespaces() {
        let namespace = texts(&[
            ("cni.projectcalico.org/ipv4pools", r#"["a"]"#),
            ("cni.projectcalico.org/ipv6pools", r#"["b"]"#),
            ("cni.projectcalico.org/hwAddr", "02:00:00:00:00:01"),
        ]);
        let pod = texts(&[("cni.projectcalico.org/ipv4pools", r#"["10.9.0.0/16", "c"]"#)]);

        let said = Annotations::read(&pod, &namespace).unwrap();

        assert_eq!(said.pools[&Family::V4], ["10.9.0.0/16", "c"]);
        assert_eq!(said.pools[&Family::V6], ["b"]);
        assert_eq!(said.mac, None);
    }

    #[test]
    fn calicos_limits_outrank_kubernetes_and_have_its_bounds() {
        let said = read(&[
            ("kubernetes.io/ingress-bandwidth", "1M"),
            ("kubernetes.io/egress-bandwidth", "20M"),
            ("qos.projectcalico.org/ingressBandwidth", "10M"),
            ("qos.projectcalico.org/ingressBurst", "2M"),
            ("qos.projectcalico.org/ingressPeakrate", "11M"),
        ])
        .unwrap();

        let ingress = said.ingress.unwrap();
        assert_eq!((ingress.rate, ingress.burst), (10_000_000, 2_000_000));
        assert_eq!(ingress.peak, Some(11_000_000));
        let egress = said.egress.unwrap();
        assert_eq!((egress.rate, egress.burst), (20_000_000, 4 << 30));
    }

    #[test]
    fn what_promises_something_else_is_refused_by_its_key() {
        for (key, text) in [
            (
                "cni.projectcalico.org/allowedSourcePrefixes",
                r#"["10.0.0.0/8"]"#,
            ),
            ("cni.projectcalico.org/somethingNew", "x"),
            ("cni.projectcalico.org/ipAddrs", "10.0.0.1"),
            (
                "cni.projectcalico.org/ipAddrs",
                r#"["10.0.0.1", "10.0.0.2"]"#,
            ),
            ("cni.projectcalico.org/hwAddr", "01:00:00:00:00:01"),
            ("cni.projectcalico.org/ipFamilies", r#"["ipv4"]"#),
            ("qos.projectcalico.org/ingressPacketRate", "10"),
            ("qos.projectcalico.org/dscp", "10"),
            ("qos.projectcalico.org/egressBurst", "1M"),
            ("kubernetes.io/egress-bandwidth", "999"),
        ] {
            let said = read(&[(key, text)]).unwrap_err();
            assert!(said.to_string().contains(key), "{said}");
        }
        assert!(read(&[("cni.projectcalico.org/podIP", ""), ("other/key", "x")]).is_ok());
    }
}
