//! Where stories happen.

use wireguard::{Device, Make, Space};

/// Two devices that were born in one namespace and moved into two others.
///
/// ```text
///  ┌─ left ───────┐   ┌─ middle ──────────────────┐   ┌─ right ──────┐
///  │ a 10.7.0.1   │───│ 127.0.0.1, ::1            │───│ b 10.7.0.2   │
///  │   fd07::1    │   │ a: port 6001  b: port 6002│   │   fd07::2    │
///  └──────────────┘   └───────────────────────────┘   └──────────────┘
/// ```
pub(crate) struct Apart {
    pub(crate) a: Device,
    pub(crate) b: Device,
    pub(crate) left: Space,
    pub(crate) right: Space,
    pub(crate) middle: Space,
}

impl Apart {
    pub(crate) fn new(a: Make, b: Make) -> Self {
        let (left, middle, right) = (Space::new(), Space::new(), Space::new());
        let mut a = Device::new(a, &middle, 6001);
        let mut b = Device::new(b, &middle, 6002);
        a.move_to(&left);
        b.move_to(&right);
        befriend(&a, &b, "10.7.0.2/32,fd07::2/128");
        befriend(&b, &a, "10.7.0.1/32,fd07::1/128");
        a.up(&["10.7.0.1/24", "fd07::1/64"]);
        b.up(&["10.7.0.2/24", "fd07::2/64"]);
        Self {
            a,
            b,
            left,
            right,
            middle,
        }
    }

    /// Both know where the other is, over one family.
    pub(crate) fn meet(&self, host: &str) {
        self.a
            .wg(&format!("peer {} endpoint {host}:6002", self.b.keys.public));
        self.b
            .wg(&format!("peer {} endpoint {host}:6001", self.a.keys.public));
    }
}

/// Two ends of a cable, each with a device.
///
/// ```text
///  ┌─ left ───────────────┐           ┌─ right ──────────────┐
///  │ a 10.7.0.1, fd07::1  │           │ b 10.7.0.2, fd07::2  │
///  │ eth0 192.0.2.1       │───────────│ eth0 192.0.2.2       │
///  │      2001:db8::1     │           │      2001:db8::2     │
///  └──────────────────────┘           └──────────────────────┘
/// ```
pub(crate) struct Cable {
    pub(crate) a: Device,
    pub(crate) b: Device,
    pub(crate) left: Space,
    pub(crate) right: Space,
}

impl Cable {
    /// Without addresses on the cable, without endpoints.
    pub(crate) fn bare(a: Make, b: Make) -> Self {
        let (left, right) = (Space::new(), Space::new());
        left.cable("eth0", &right, "eth0");
        let a = Device::new(a, &left, 6001);
        let b = Device::new(b, &right, 6002);
        befriend(&a, &b, "10.7.0.2/32,fd07::2/128");
        befriend(&b, &a, "10.7.0.1/32,fd07::1/128");
        a.up(&["10.7.0.1/24", "fd07::1/64"]);
        b.up(&["10.7.0.2/24", "fd07::2/64"]);
        Self { a, b, left, right }
    }

    /// `a` knows where `b` is.
    pub(crate) fn new(a: Make, b: Make) -> Self {
        let cable = Self::bare(a, b);
        for (space, number) in [(&cable.left, 1), (&cable.right, 2)] {
            space.address("eth0", &format!("192.0.2.{number}/24"));
            space.address("eth0", &format!("2001:db8::{number}/64"));
        }
        cable.a_goes_to("192.0.2.2:6002");
        cable
    }

    pub(crate) fn a_goes_to(&self, endpoint: &str) {
        self.a
            .wg(&format!("peer {} endpoint {endpoint}", self.b.keys.public));
    }

    pub(crate) fn b_goes_to(&self, endpoint: &str) {
        self.b
            .wg(&format!("peer {} endpoint {endpoint}", self.a.keys.public));
    }
}

/// Makes `other` a peer of `device`.
pub(crate) fn befriend(device: &Device, other: &Device, allowed_ips: &str) {
    device.wg(&format!(
        "peer {} allowed-ips {allowed_ips}",
        other.keys.public
    ));
}
