//! Requests to the store: what members, administrators and strangers may send over gRPC.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, path::Path};

use jiff::Timestamp;
use model::{Kind, Object, ObjectKey};
use store::{Caller, Door, Identity, Reply, Store as _};
use tokio::runtime::Runtime;

use super::{Broken, Fate, Target, promise};
use crate::{Dice, mutation};

mod line;
mod right;

use line::{Line, Method};

/// Calls of a story at most.
const CALLS: usize = 24;

/// Calls, one a line: who, which method, and what in JSON; or `raw`, a path and bytes in hexadecimal. They reach a
/// server that knows the nodes `n1` and `n2`, each with a block and a key, and its administrator.
///
/// Promises: a refused call changes nothing; an accepted call of a node changes only what is the node's own and
/// what a node may write, as a second reading of the claims' table has it; a stranger changes and reads
/// nothing; what is stored is read back as itself, at most 256 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Requests;

/// All that is stored, by kind and name.
type Everything = BTreeMap<ObjectKey, Object>;

impl Target for Requests {
    fn name(&self) -> &'static str {
        "request"
    }

    fn generate(&self, dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut lines: Vec<String> = Vec::new();
        for _ in 0..1 + dice.roll(12) {
            let from = dice
                .pick(corpus)
                .map_or("".into(), |text| String::from_utf8_lossy(text));
            let known: Vec<&str> = from.lines().collect();
            let (one, other) = (dice.pick(&known), dice.pick(&known));
            let (Some(one), Some(other)) = (one, other) else {
                continue;
            };
            lines.push(line::changed(dice, one, other));
        }
        if dice.one_in(12) {
            return mutation::bytes(dice, lines.join("\n").into_bytes());
        }
        lines.join("\n").into_bytes()
    }

    fn run(&self, input: &[u8]) -> Result<Fate, Broken> {
        thread_local! {
            static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
        }
        RUNTIME.with_borrow_mut(|runtime| {
            let runtime = match runtime {
                Some(runtime) => runtime,
                None => {
                    let made = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build();
                    runtime.insert(made.map_err(|error| Broken(format!("no runtime: {error}")))?)
                }
            };
            runtime.block_on(story(&String::from_utf8_lossy(input)))
        })
    }
}

async fn story(text: &str) -> Result<Fate, Broken> {
    let mut fate = Fate::default();
    let folder = directory()?;
    let callers: Vec<Identity> = ["admin", "n1", "n2"]
        .into_iter()
        .filter_map(line::caller)
        .collect();
    let source = SocketAddr::from(([192, 0, 2, 1], 40_000));
    // Certificates have dates; nothing else of a story looks at the clock.
    let door = Door::open(folder.path(), &callers, source, Timestamp::now())
        .await
        .map_err(|error| Broken(format!("the store does not open: {error:?}")))?;
    line::furnish(&door).await?;
    let mut before = everything(&door).await?;
    for text in text.lines().take(CALLS) {
        let Some(line) = Line::parse(text) else {
            fate.note("no call");
            continue;
        };
        let caller = line::caller(&line.caller);
        let known = caller.as_ref().filter(|caller| callers.contains(caller));
        let message = line.message(&before);
        let reply = door.call(known, &line.path(), &message).await;
        let after = everything(&door).await?;
        fate.note(format!(
            "{} {}: {:?}",
            role(known),
            line.method.name(),
            reply.code
        ));
        judge(known, &line, &reply, &before, &after)?;
        before = after;
    }
    Ok(fate)
}

fn role(caller: Option<&Identity>) -> &'static str {
    caller.map_or("nobody", Identity::role)
}

/// A folder in memory where there is one: every commit is written through to the disk.
fn directory() -> Result<tempfile::TempDir, Broken> {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    made.map_err(|error| Broken(format!("no folder: {error}")))
}

async fn everything(door: &Door) -> Result<Everything, Broken> {
    let session = door.store().session(Caller::local_admin());
    let mut all = Everything::new();
    for kind in Kind::ALL {
        let list = session
            .list(*kind)
            .await
            .map_err(|error| Broken(format!("{kind} cannot be listed: {error}")))?;
        all.extend(
            list.objects
                .into_iter()
                .map(|object| (object.key(), object)),
        );
    }
    Ok(all)
}

fn judge(
    caller: Option<&Identity>,
    line: &Line,
    reply: &Reply,
    before: &Everything,
    after: &Everything,
) -> Result<(), Broken> {
    let is_accepted = reply.code as i32 == 0;
    let changed: Vec<&ObjectKey> = before
        .keys()
        .chain(after.keys().filter(|key| !before.contains_key(key)))
        .filter(|key| before.get(key) != after.get(key))
        .collect();
    promise(is_accepted || changed.is_empty(), || {
        format!(
            "refused with {:?}, but changed {changed:?}: {line:?}",
            reply.code
        )
    })?;
    // A host joins by its token, which is what it shows in place of a certificate.
    let joins = line.method == Method::Raw && line.path().contains(".Join/");
    promise(caller.is_some() || joins || !is_accepted, || {
        format!("a stranger may {line:?}")
    })?;
    for key in changed {
        right::check(caller, key, before, after)
            .map_err(|promise| Broken(format!("{promise}: {line:?}")))?;
        if let Some(object) = after.get(key) {
            is_well_formed(object)?;
        }
    }
    Ok(())
}

fn is_well_formed(object: &Object) -> Result<(), Broken> {
    let text = serde_json::to_string(object)
        .map_err(|error| Broken(format!("what is stored cannot be written: {error}")))?;
    promise(text.len() <= (256 << 10) + 4096, || {
        format!("{} bytes were stored", text.len())
    })?;
    let again: Option<Object> = serde_json::from_str(&text).ok();
    promise(again.as_ref() == Some(object), || {
        format!("{object:?} is read back as {again:?}")
    })
}
