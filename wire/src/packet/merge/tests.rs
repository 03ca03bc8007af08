//! Joining and cutting are inverse: whatever is merged comes apart again byte for byte.

use std::io::IoSlice;
use std::ops::Range;

use proptest::prelude::*;

use super::{Joins, Merger, Sink};
use crate::packet::segment::{SuperFrame, pseudo_sum, write_ip_checksum};
use crate::packet::virtio::{self, Header, Kind};
use crate::packet::{checksum, ip};

const ALL: Joins = Joins {
    tcp: true,
    udp: true,
};

/// Every frame that came out: its header, its packet.
#[derive(Default)]
struct Frames(Vec<(Header, Vec<u8>)>);

impl Sink for Frames {
    fn write(&mut self, parts: &[IoSlice<'_>]) {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (header, packet) = bytes.split_first_chunk::<{ virtio::SIZE }>().unwrap();
        self.0
            .push((Header::decode(header).unwrap(), packet.to_vec()));
    }
}

impl Frames {
    /// What the kernel makes of them.
    fn cut(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for (header, packet) in &self.0 {
            if header.kind == Kind::Single {
                packets.push(packet.clone());
                continue;
            }
            let frame = SuperFrame::parse(header, packet).unwrap();
            for index in 0..frame.count() {
                let mut out = vec![0; frame.length(index)];
                frame.write(index, &mut out);
                packets.push(out);
            }
        }
        packets
    }
}

fn merge(packets: &[Vec<u8>], joins: Joins) -> Frames {
    let mut buffer = Vec::new();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for packet in packets {
        let start = buffer.len();
        buffer.extend(packet);
        ranges.push(start..buffer.len());
    }
    let (mut merger, mut frames) = (Merger::new(joins), Frames::default());
    for range in ranges {
        merger.push(&mut buffer, range, &mut frames);
    }
    merger.flush(&mut buffer, &mut frames);
    frames
}

#[derive(Clone, Debug)]
struct Shape {
    v6: bool,
    udp: bool,
    port: u8,
    sequence: u32,
    identification: u16,
    flags: u8,
    options: usize,
    ttl: u8,
    payload: usize,
    broken: bool,
}

impl Shape {
    fn build(&self) -> Vec<u8> {
        let transport = if self.v6 { 40 } else { 20 };
        let header = if self.udp { 8 } else { 20 + self.options * 4 };
        let length = transport + header + self.payload;
        let mut packet = vec![0u8; length];
        if self.v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
            packet[6] = if self.udp { ip::UDP } else { ip::TCP };
            packet[7] = self.ttl;
            packet[23] = 1;
            packet[39] = 2;
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            packet[4..6].copy_from_slice(&self.identification.to_be_bytes());
            packet[8] = self.ttl;
            packet[9] = if self.udp { ip::UDP } else { ip::TCP };
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            write_ip_checksum(&mut packet, 20);
        }
        packet[transport + 1] = self.port;
        packet[transport + 3] = 80;
        for (at, byte) in packet[transport + header..].iter_mut().enumerate() {
            *byte = u8::try_from((at * 7 + usize::from(self.port)) % 256).unwrap();
        }
        let span = u16::try_from(length - transport).unwrap();
        let checksum = if self.udp {
            packet[transport + 4..transport + 6].copy_from_slice(&span.to_be_bytes());
            6
        } else {
            packet[transport + 4..transport + 8].copy_from_slice(&self.sequence.to_be_bytes());
            packet[transport + 12] = u8::try_from((5 + self.options) << 4).unwrap();
            packet[transport + 13] = self.flags;
            16
        };
        let pseudo = pseudo_sum(&packet, packet[if self.v6 { 6 } else { 9 }], span);
        let sum = checksum::complement(checksum::sum(pseudo, &packet[transport..]));
        let sum = if sum == [0, 0] { [0xff; 2] } else { sum };
        packet[transport + checksum..transport + checksum + 2].copy_from_slice(&sum);
        if self.broken {
            packet[length - 1] ^= 0x55;
        }
        packet
    }
}

/// A stream of one flow that is disturbed here and there.
fn stream() -> impl Strategy<Value = Vec<Shape>> {
    let step = (
        0u8..24,
        prop_oneof![4 => Just(200usize), 1 => 0usize..260],
        any::<bool>(),
    );
    (
        any::<bool>(),
        any::<bool>(),
        any::<u32>(),
        any::<u16>(),
        0usize..4,
        prop::collection::vec(step, 1..120),
    )
        .prop_map(
            |(v6, udp, mut sequence, mut identification, options, steps)| {
                let mut shapes = Vec::new();
                for (event, payload, push) in steps {
                    let shape = Shape {
                        v6,
                        udp,
                        port: u8::from(event == 1),
                        sequence: if event == 2 { sequence ^ 4 } else { sequence },
                        identification: identification ^ u16::from(event == 3),
                        flags: match event {
                            4 => 0x11,
                            5 => 0x50,
                            6 => 0x02,
                            _ if push && event < 12 => 0x18,
                            _ => 0x10,
                        },
                        options: if event == 7 { options + 1 } else { options },
                        ttl: if event == 8 { 63 } else { 64 },
                        payload,
                        broken: event == 9,
                    };
                    sequence = sequence.wrapping_add(u32::try_from(payload).unwrap());
                    identification = identification.wrapping_add(1);
                    shapes.push(shape);
                }
                shapes
            },
        )
}

proptest! {
    #[test]
    fn what_is_merged_comes_apart_byte_for_byte(shapes in stream()) {
        let packets: Vec<Vec<u8>> = shapes.iter().map(Shape::build).collect();
        prop_assert_eq!(merge(&packets, ALL).cut(), packets);
    }

    #[test]
    fn noise_passes_unchanged(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 1..20)) {
        prop_assert_eq!(merge(&packets, ALL).cut(), packets);
    }
}

fn plain(index: u16) -> Shape {
    Shape {
        v6: false,
        udp: false,
        port: 7,
        sequence: 0xffff_ff00u32.wrapping_add(u32::from(index) * 1000),
        identification: index,
        flags: 0x10,
        options: 3,
        ttl: 64,
        payload: 1000,
        broken: false,
    }
}

#[test]
fn a_steady_stream_becomes_one_super_frame() {
    for (v6, udp, kind) in [
        (false, false, Kind::TcpV4),
        (true, false, Kind::TcpV6),
        (false, true, Kind::Udp),
        (true, true, Kind::Udp),
    ] {
        let packets: Vec<_> = (0..45)
            .map(|index| {
                Shape {
                    v6,
                    udp,
                    ..plain(index)
                }
                .build()
            })
            .collect();
        let frames = merge(&packets, ALL);
        assert_eq!(frames.0.len(), 1, "{kind:?}");
        assert_eq!(frames.0[0].0.kind, kind);
    }
}

#[test]
fn a_device_without_offload_gets_single_packets() {
    let none = Joins {
        tcp: false,
        udp: false,
    };
    let packets: Vec<_> = (0..5).map(|index| plain(index).build()).collect();
    assert_eq!(merge(&packets, none).0.len(), 5);
}

#[test]
fn a_broken_packet_is_never_repaired_by_merging() {
    let mut shapes: Vec<_> = (0..5).map(plain).collect();
    shapes[2].broken = true;
    let packets: Vec<_> = shapes.iter().map(Shape::build).collect();
    let frames = merge(&packets, ALL);
    assert_eq!(
        frames.0.iter().map(|(h, _)| h.kind).collect::<Vec<_>>(),
        [Kind::TcpV4, Kind::Single, Kind::TcpV4]
    );
    assert_eq!(frames.cut(), packets);
}
