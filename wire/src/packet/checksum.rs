//! The Internet checksum (RFC 1071) in little-endian lanes.
//!
//! Ones' complement sums do not depend on byte order as long as one order is kept: bytes are summed as
//! little-endian words here and [`fold`]ed results are written back with `to_le_bytes`.

/// Adds `bytes` to the running sum `sum`. Only the last slice added may have an odd length.
#[inline]
pub(crate) fn sum(sum: u64, bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut words = blocks.remainder().chunks_exact(2);
    let mut total = sum + lanes.iter().sum::<u64>();
    for word in &mut words {
        total += u64::from(u16::from_le_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        total += u64::from(*last);
    }
    total
}

/// The 16 bit ones' complement sum; its complement is the checksum of RFC 1071.
#[inline]
pub(crate) fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from(sum & 0xffff).unwrap_or(u16::MAX)
}

/// The checksum to store for `sum`: its folded complement, as bytes in place order.
#[inline]
pub(crate) fn complement(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_le_bytes()
}

/// The sum of the pseudo header (RFC 793 §3.1, RFC 8200 §8.1): source and destination `addresses`, `protocol` and
/// the transport `length` in bytes.
#[inline]
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: u16) -> u64 {
    let [high, low] = length.to_be_bytes();
    let fixed = u16::from_le_bytes([0, protocol]);
    let length = u16::from_le_bytes([high, low]);
    sum(u64::from(fixed) + u64::from(length), addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition of RFC 1071, word by big-endian word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            total = (total & 0xffff) + (total >> 16);
        }
        u16::try_from(total).unwrap()
    }

    proptest! {
        #[test]
        fn the_wide_sum_is_the_sum_of_rfc_1071(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(0, &bytes)).to_le_bytes(), slow(&bytes).to_be_bytes());
        }
    }

    #[test]
    fn the_pseudo_header_sums_like_its_bytes() {
        let addresses = [192, 0, 2, 1, 198, 51, 100, 200];
        let mut bytes = addresses.to_vec();
        bytes.extend([0, 6, 0x12, 0x34]);
        assert_eq!(fold(pseudo(&addresses, 6, 0x1234)), fold(sum(0, &bytes)));
    }

    #[test]
    fn the_example_of_rfc_1071_holds() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(0, &bytes)).to_le_bytes(), [0xdd, 0xf2]);
    }
}
