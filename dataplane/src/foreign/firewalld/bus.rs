//! A connection to the system bus.
//!
//! What comes from there is input: each call has a deadline, what is taken in of an answer is bounded, and the
//! bus itself sends no message of more than 32 MiB. Signals count only where the bus says that firewalld sent
//! them, or that it came or went; anybody may send some.

use std::{env, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    time,
};
use zbus::{Connection, DynamicType, MessageStream, Type, fdo};

/// Where the system bus is, unless the environment says otherwise (D-Bus specification, "Well-known Message
/// Bus Instances").
const BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// firewalld's name on the bus.
pub(super) const NAME: &str = "org.fedoraproject.FirewallD1";

/// The bus itself.
const DAEMON: Place<'_> = ("/org/freedesktop/DBus", "org.freedesktop.DBus");

/// What is listened to: firewalld's changes at run time, and its coming and going.
const RULES: [&str; 2] = [
    "type='signal',sender='org.fedoraproject.FirewallD1',path='/org/fedoraproject/FirewallD1'",
    "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='org.fedoraproject.FirewallD1'",
];

/// Signals that may wait; they are only counted.
const WAITING: NonZeroUsize = NonZeroUsize::new(16).expect("sixteen is not zero");

/// How long an answer may take. firewalld answers nothing while it loads its configuration.
const ANSWER: Duration = Duration::from_secs(10);

/// Characters of an answer that are shown.
const SHOWN: usize = 200;

/// An object and an interface of it.
pub(super) type Place<'a> = (&'a str, &'a str);

/// Where a bus listens.
#[derive(Clone, Debug)]
pub(super) struct Address {
    text: String,
    socket: PathBuf,
}

/// Why the bus or firewalld could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    #[error("could not connect to the system bus")]
    Connect(#[source] zbus::Error),
    #[error("could not listen on the system bus")]
    Listen(#[source] zbus::Error),
    #[error("{0} was not answered in time")]
    Silence(&'static str),
    #[error("{method} was refused: {reason}")]
    Refused {
        method: &'static str,
        reason: String,
    },
    #[error("{method} failed")]
    Call {
        method: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("the answer to {method} is not what firewalld's documentation says: {what}")]
    Answer { method: &'static str, what: String },
    #[error("what is ours could not be noted")]
    Note(#[source] std::io::Error),
}

/// A connection.
pub(super) struct Bus {
    connection: Connection,
    /// firewalld's connection, as last seen.
    firewalld: watch::Sender<Option<String>>,
}

/// Returns where the system bus listens, if that is a file.
pub(super) fn address() -> Option<Address> {
    let text = env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| BUS.to_owned());
    let (socket, _) = text.split_once([',', ';']).unwrap_or((&text, ""));
    let socket = socket.strip_prefix("unix:path=")?.into();

    Some(Address { text, socket })
}

impl Address {
    #[cfg(test)]
    pub(super) fn of(socket: PathBuf) -> Self {
        let text = format!("unix:path={}", socket.display());

        Self { text, socket }
    }

    /// Returns whether a bus may listen there.
    pub(super) fn is_there(&self) -> bool {
        self.socket.exists()
    }
}

impl Bus {
    pub(super) async fn connect(address: &Address) -> Result<Self, BusError> {
        let connecting = zbus::connection::Builder::address(address.text.as_str())
            .method_timeout(ANSWER)
            .build();
        let connection = time::timeout(ANSWER, connecting)
            .await
            .map_err(|_| BusError::Silence("the greeting"))?
            .map_err(BusError::Connect)?;

        Ok(Self {
            connection,
            firewalld: watch::Sender::default(),
        })
    }

    /// Returns what is told of each change of firewalld's.
    pub(super) async fn listen(&self) -> Result<Arc<Notify>, BusError> {
        let heard = Arc::new(Notify::new());
        for rule in RULES {
            let stream = MessageStream::for_match_rule(rule, &self.connection, Some(WAITING));
            let mut stream = stream.await.map_err(BusError::Listen)?;
            let (heard, firewalld) = (heard.clone(), self.firewalld.subscribe());
            // Ends with the connection. Whoever waits for an answer must not hold up the signals before it.
            drop(tokio::spawn(async move {
                while let Some(signal) = stream.next().await {
                    if signal.is_ok_and(|signal| counts(&signal, firewalld.borrow().as_deref())) {
                        heard.notify_one();
                    }
                }
            }));
        }

        Ok(heard)
    }

    /// Waits until the connection is closed.
    pub(super) async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Returns the name of firewalld's connection, to which from now on calls go.
    pub(super) async fn find_firewalld(&self) -> Result<Option<String>, BusError> {
        let method = "GetNameOwner";
        let asked = self.call(Some(DAEMON.1), DAEMON, method, &(NAME,)).await;
        let owner = match asked {
            Err(BusError::Call {
                source: zbus::Error::FDO(error),
                ..
            }) if matches!(*error, fdo::Error::NameHasNoOwner(_)) => None,
            Err(error) => return Err(error),
            Ok(answer) => Some(answered(method, &answer)?),
        };
        self.firewalld.send_replace(owner.clone());

        Ok(owner)
    }

    /// Returns the process of a connection.
    pub(super) async fn process(&self, of: &str) -> Result<u32, BusError> {
        let method = "GetConnectionUnixProcessID";

        answered(
            method,
            &self.call(Some(DAEMON.1), DAEMON, method, &(of,)).await?,
        )
    }

    /// Returns what tells this run of the bus from every other.
    pub(super) fn id(&self) -> String {
        self.connection.server_guid().to_string()
    }

    /// Asks firewalld, by the name of its connection: a call by its own name might start it.
    pub(super) async fn ask<A: DeserializeOwned + Type>(
        &self,
        place: Place<'_>,
        method: &'static str,
        arguments: &(impl serde::Serialize + DynamicType),
    ) -> Result<A, BusError> {
        let to = self.firewalld.borrow().clone();

        answered(
            method,
            &self.call(to.as_deref(), place, method, arguments).await?,
        )
    }

    async fn call(
        &self,
        to: Option<&str>,
        (path, interface): Place<'_>,
        method: &'static str,
        arguments: &(impl serde::Serialize + DynamicType),
    ) -> Result<zbus::Message, BusError> {
        let calling = self
            .connection
            .call_method(to, path, Some(interface), method, arguments);
        let answer = time::timeout(ANSWER, calling)
            .await
            .map_err(|_| BusError::Silence(method))?;

        answer.map_err(|source| {
            if let zbus::Error::MethodError(_, reason, _) = source {
                let reason = shown(&reason.unwrap_or_default());
                return BusError::Refused { method, reason };
            }

            BusError::Call { method, source }
        })
    }
}

/// Returns whether firewalld or the bus sent a signal. The bus itself names the sender.
fn counts(signal: &zbus::Message, firewalld: Option<&str>) -> bool {
    let header = signal.header();
    let sender = header.sender().map(|sender| sender.as_str());

    sender.is_some_and(|sender| sender == DAEMON.1 || Some(sender) == firewalld)
}

/// Reads an answer.
fn answered<A: DeserializeOwned + Type>(
    method: &'static str,
    answer: &zbus::Message,
) -> Result<A, BusError> {
    let what = |error: zbus::Error| shown(&error.to_string());
    let read = answer.body().deserialize();

    read.map_err(|error| BusError::Answer {
        method,
        what: what(error),
    })
}

/// Returns what others wrote as it may be shown.
fn shown(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };

    text.chars().take(SHOWN).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_is_shown_on_one_line_and_cut() {
        assert_eq!(shown("a\nb\x1b[31m"), "a b [31m");
        assert_eq!(shown(&"x".repeat(1000)).len(), SHOWN);
    }

    #[test]
    fn a_signal_of_somebody_else_counts_for_nothing() {
        let from = |sender: &str| {
            let signal = zbus::Message::signal("/org/fedoraproject/FirewallD1", NAME, "Reloaded");
            signal.sender(sender).build(&()).unwrap()
        };
        assert!(counts(&from(":1.7"), Some(":1.7")));
        assert!(!counts(&from(":1.8"), Some(":1.7")));
        assert!(!counts(&from(":1.7"), None));
        assert!(counts(&from(DAEMON.1), None));
    }
}
