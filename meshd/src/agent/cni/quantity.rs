//! Kubernetes' quantities: numbers with a suffix, as `10M`, `1.5Gi` or `2e6`.
//!
//! Format: the documentation of `resource.Quantity` in Kubernetes' API.

/// What a suffix multiplies by, the longer ones first.
const SUFFIXES: [(&str, u128); 14] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
    ("m", 0),
    ("", 1),
];

/// Longest text and most digits behind the point that are read.
const TEXT_MAX: usize = 32;
const FRACTION_MAX: usize = 9;

/// Reads a quantity of whole units; a fraction is rounded up, as Kubernetes does. `None` where it is none, or does not
/// fit.
pub(super) fn parse(text: &str) -> Option<u64> {
    if text.len() > TEXT_MAX {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > FRACTION_MAX {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let (factor, divisor) = match suffix
        .strip_prefix(['e', 'E'])
        .filter(|rest| !rest.is_empty())
    {
        Some(rest) if !rest.starts_with('i') => (power(rest)?, parts),
        Some(_) | None if suffix == "m" => (1, parts * 1000),
        Some(_) | None => {
            let known = SUFFIXES.iter().find(|(name, _)| *name == suffix)?;
            (known.1, parts)
        }
    };
    let value = digits.checked_mul(factor)?.div_ceil(divisor);

    u64::try_from(value).ok()
}

fn power(exponent: &str) -> Option<u128> {
    10_u128.checked_pow(exponent.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, value) in [
            ("0", Some(0)),
            ("10M", Some(10_000_000)),
            ("1.5k", Some(1500)),
            ("1Ki", Some(1024)),
            ("1Ei", Some(1 << 60)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("2e6", Some(2_000_000)),
            ("2E3", Some(2000)),
            ("1500m", Some(2)),
            (".5G", Some(500_000_000)),
            ("", None),
            (".", None),
            ("-1", None),
            ("1 M", None),
            ("1K", None),
            ("10Mbit", None),
            ("1.2.3", None),
            ("99E", None),
            ("1e40", None),
            ("99999999999999999999999999999999999", None),
        ] {
            assert_eq!(parse(text), value, "{text}");
        }
    }
}
