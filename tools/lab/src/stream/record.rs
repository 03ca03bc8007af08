//! One record of a stream: the canary, a number, and a filling that follows from the number.

use super::Canary;

/// Bytes of a record.
pub(super) const LENGTH: usize = 64;

/// Writes a record.
pub(super) fn encode(canary: &Canary, number: u64) -> [u8; LENGTH] {
    let mut record = [0; LENGTH];
    record[..16].copy_from_slice(canary);
    record[16..24].copy_from_slice(&number.to_be_bytes());
    for (at, bytes) in record[24..].chunks_mut(8).enumerate() {
        bytes.copy_from_slice(&(!number).rotate_left(at as u32 * 8).to_be_bytes());
    }
    record
}

/// Reads a record's number; none if a byte of it was changed.
pub(super) fn decode(canary: &Canary, record: &[u8]) -> Option<u64> {
    let number = u64::from_be_bytes(record.get(16..24)?.try_into().ok()?);
    (record == encode(canary, number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_is_noticed() {
        let canary = [7; 16];
        let record = encode(&canary, 99);
        assert_eq!(decode(&canary, &record), Some(99));
        for at in 0..LENGTH {
            let mut changed = record;
            changed[at] ^= 1;
            assert_eq!(decode(&canary, &changed), None, "{at}");
        }
        assert_eq!(decode(&canary, &record[1..]), None);
    }
}
