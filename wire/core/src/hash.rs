//! BLAKE2s as the paper uses it: HASH, MAC, HMAC and the key derivation (§5.4).
use blake2::digest::consts::U16;
use blake2::digest::{Digest, KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac};
use hmac::SimpleHmac;
use zeroize::Zeroizing;

/// 32 secret bytes that are erased when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// HASH: 32 bytes of BLAKE2s over the parts, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Blake2s256::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().into()
}

/// MAC: 16 bytes of keyed BLAKE2s. The key has at most 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    debug_assert!(key.len() <= 32);
    let mut state = <Blake2sMac<U16> as KeyInit>::new_from_slice(key)
        .expect("keys of up to 32 bytes are taken");
    for part in parts {
        Mac::update(&mut state, part);
    }
    state.finalize().into_bytes().into()
}

/// The first `N` outputs of the key derivation: KDF₁, KDF₂, KDF₃.
pub(crate) fn derive<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let root = hmac(key, &[input]);
    let mut previous: Option<Secret> = None;
    std::array::from_fn(|i| {
        let counter = [i as u8 + 1];
        let output = match &previous {
            None => hmac(&root, &[&counter]),
            Some(previous) => hmac(&root, &[previous.as_slice(), &counter]),
        };
        previous = Some(output.clone());
        output
    })
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut state = <SimpleHmac<Blake2s256> as KeyInit>::new_from_slice(key)
        .expect("HMAC takes keys of any length");
    for part in parts {
        Mac::update(&mut state, part);
    }
    Zeroizing::new(state.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blake2s_agrees_with_rfc_7693() {
        assert_eq!(
            hex::encode(hash(&[b"a", b"bc"])),
            "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
        );
    }

    #[test]
    fn hmac_agrees_with_its_definition_in_rfc_2104() {
        let key = [0x0b; 32];
        let padded = |pad: u8| -> Vec<u8> {
            (0..64)
                .map(|i| key.get(i).copied().unwrap_or(0) ^ pad)
                .collect()
        };
        let inner = hash(&[&padded(0x36), b"Hi There"]);
        let outer = hash(&[&padded(0x5c), &inner]);
        assert_eq!(*hmac(&key, &[b"Hi ", b"There"]), outer);
    }

    #[test]
    fn each_output_of_the_derivation_feeds_the_next() {
        let [one, two, three] = derive::<3>(&[1; 32], b"input");
        let root = hmac(&[1; 32], &[b"input"]);
        assert_eq!(*one, *hmac(&root, &[&[1]]));
        assert_eq!(*two, *hmac(&root, &[one.as_slice(), &[2]]));
        assert_eq!(*three, *hmac(&root, &[two.as_slice(), &[3]]));
    }
}
