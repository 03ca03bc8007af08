//! What in a datagram is authentic, and what anybody may change (§5.4 of the WireGuard paper).

use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest, KeyInit, Mac, consts::U16},
};
use wire_core::PublicKey;

/// The part of a datagram that its receiver can authenticate.
pub(super) type Essence = Vec<u8>;

/// Leaves out what whoever knows the receiver's public key may change unnoticed: in an initiation and in a
/// response the sender's index and both macs. (A changed index harms only the session that it begins.)
pub(super) fn essence(datagram: &[u8]) -> Essence {
    match (datagram.first(), datagram.len()) {
        (Some(1), 148) => [&datagram[..4], &datagram[8..116]].concat(),
        (Some(2), 92) => [&datagram[..4], &datagram[8..60]].concat(),
        (_, _) => datagram.to_vec(),
    }
}

/// Gives an initiation or a response the `mac1` that belongs to it, as anybody can who knows the receiver.
pub(super) fn sign(datagram: &mut [u8], receiver: &PublicKey) {
    let signed = match (datagram.first(), datagram.len()) {
        (Some(1), 148) => 116,
        (Some(2), 92) => 60,
        (_, _) => return,
    };
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(receiver.as_bytes())
        .finalize();
    let mut mac =
        <Blake2sMac<U16> as KeyInit>::new_from_slice(&key).expect("32 bytes are a key of BLAKE2s");
    Mac::update(&mut mac, &datagram[..signed]);
    datagram[signed..signed + 16].copy_from_slice(&mac.finalize().into_bytes());
}
