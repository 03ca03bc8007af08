//! Families of generic netlink, which the kernel numbers as they come and knows by name.

use super::{Attributes, Message, NetlinkError, Socket, flag, u16_ne};

/// The family that knows the others (`GENL_ID_CTRL` of linux/genetlink.h).
const CONTROL: u16 = 0x10;

/// `CTRL_CMD_GETFAMILY`, and the version of its family.
const GET_FAMILY: u8 = 3;
const CONTROL_VERSION: u8 = 2;

/// `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Bytes of `struct genlmsghdr`: command, version, two reserved.
const HEADER: usize = 4;

/// A family of generic netlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    id: u16,
    version: u8,
}

/// Asks for a family by its name; `None` where the kernel has none of that name. The kernel looks for
/// a module that brings it before it says so.
pub(crate) fn family(
    socket: &mut Socket,
    name: &str,
    version: u8,
) -> Result<Option<Family>, NetlinkError> {
    let mut request = Message::new(CONTROL, flag::ACK, &[GET_FAMILY, CONTROL_VERSION, 0, 0]);
    request.put_text(FAMILY_NAME, name);
    let answer = socket.get(request, |message| {
        let attributes = Attributes::new(message.payload.get(HEADER..)?);

        attributes.find(FAMILY_ID).and_then(u16_ne)
    })?;

    match answer {
        Ok(id) => Ok(id.map(|id| Family { id, version })),
        Err(refusal) if refusal.is_absence() => Ok(None),
        Err(refusal) => Err(NetlinkError::Dump(refusal)),
    }
}

impl Family {
    /// A family whose number is known.
    #[cfg(test)]
    pub(crate) const fn numbered(id: u16, version: u8) -> Self {
        Self { id, version }
    }

    /// Begins a request with this command.
    pub(crate) fn request(self, command: u8, flags: u16) -> Message {
        Message::new(self.id, flags, &[command, self.version, 0, 0])
    }

    /// Begins a request that carries a key, of at most this many bytes.
    pub(crate) fn secret_request(self, command: u8, capacity: usize) -> Message {
        Message::secret(self.id, &[command, self.version, 0, 0], capacity)
    }

    /// Returns the attributes of an answer.
    pub(crate) fn attributes(payload: &[u8]) -> Attributes<'_> {
        Attributes::new(payload.get(HEADER..).unwrap_or_default())
    }
}
