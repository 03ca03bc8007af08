//! What every operation does with the store: read, compare and swap.

use ipnet::IpNet;
use jiff::Timestamp;
use model::{
    Kind, NodeName, Object, ObjectKey, Revision,
    resource::{
        BlockAffinity, FieldError, IpReservation, IpamBlock, IpamConfiguration, IpamHandle,
    },
};

use crate::{
    step::{Answer, Line, Step},
    stored::{Stored, is_marked},
};

/// How often a write is tried again that others were faster than.
pub(crate) const TRIES: usize = 100;

/// Who writes, and by which rules.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who writes.
    pub writer: Writer,
    /// Settings of the cluster.
    pub configuration: IpamConfiguration,
    /// Addresses that nobody gets unasked.
    pub reservations: Vec<IpReservation>,
}

/// Whose blocks may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A node: the blocks that are affine to it.
    Node(NodeName),
    /// The authority: every block. Also a node, while `ipam.peerWrites` is `Allow`.
    Authority,
}

/// Why an operation did not come to an end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The store refused, or its answer was lost; the same operation may be begun again.
    #[error("{access}: {reason}")]
    Store {
        /// What was tried.
        access: String,
        /// What the store said.
        reason: String,
    },
    /// An object that is needed cannot be read.
    #[error("{key} cannot be read")]
    Unreadable {
        /// The object.
        key: ObjectKey,
        /// What is wrong with it.
        #[source]
        error: FieldError,
    },
    /// Others wrote the same object again and again.
    #[error("{0} changes all the time")]
    Contended(String),
    /// Another handle has the name that this one would have.
    #[error("the handle {wanted} cannot be told apart from {found}")]
    HandleTaken {
        /// The handle.
        wanted: String,
        /// Whose the record is.
        found: String,
    },
}

/// One operation's access to the store.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    line: Line,
    pub(crate) rules: Rules,
    pub(crate) now: Timestamp,
}

impl Rules {
    /// Returns the rules of a cluster that says nothing, for a node.
    pub fn of_node(node: NodeName) -> Self {
        Self {
            writer: Writer::Node(node),
            configuration: IpamConfiguration::default(),
            reservations: Vec::new(),
        }
    }

    /// Returns the same rules for the authority.
    pub fn for_authority(&self) -> Self {
        Self {
            writer: Writer::Authority,
            ..self.clone()
        }
    }

    /// Returns whether the writer may write a block with this affinity.
    pub(crate) fn may_write(&self, owner: Option<&NodeName>) -> bool {
        match &self.writer {
            Writer::Node(node) => owner == Some(node),
            Writer::Authority => true,
        }
    }

    /// Returns whether an address is reserved.
    pub(crate) fn is_reserved(&self, address: std::net::IpAddr) -> bool {
        self.reservations.iter().any(|it| it.contains(address))
    }

    /// Returns whether every address of a range is reserved.
    pub(crate) fn is_all_reserved(&self, cidr: IpNet) -> bool {
        let block = crate::block::bare(cidr);
        let mut ranges = self.reservations.iter().flat_map(|it| &it.ranges);
        if ranges.any(|range| range.contains(&cidr)) {
            return true;
        }

        (0..block.size())
            .filter_map(|ordinal| block.address(ordinal))
            .all(|address| self.is_reserved(address))
    }
}

impl Session {
    pub(crate) const fn new(line: Line, rules: Rules, now: Timestamp) -> Self {
        Self { line, rules, now }
    }

    /// Returns the time in nanoseconds since 1970: the first sequence number of a new block.
    pub(crate) fn sequence(&self) -> u64 {
        u64::try_from(self.now.as_nanosecond()).unwrap_or(0)
    }

    /// Reads an object; one that is marked for deletion is none.
    pub(crate) async fn get(&self, key: ObjectKey) -> Result<Option<Object>, Failure> {
        Ok(self.get_any(key).await?.filter(|object| !is_marked(object)))
    }

    async fn get_any(&self, key: ObjectKey) -> Result<Option<Object>, Failure> {
        let access = format!("read {key}");
        let answer = self.line.ask(Step::Get(key)).await;
        if answer == Answer::NotFound {
            return Ok(None);
        }

        answer
            .object()
            .map(Some)
            .map_err(|other| Failure::store(access, other))
    }

    /// Lists a kind; objects that are marked for deletion are left out.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        node: Option<&NodeName>,
    ) -> Result<Vec<Object>, Failure> {
        let answer = self.line.ask(Step::List(kind, node.cloned())).await;
        let Answer::Objects(mut objects) = answer else {
            let access = format!("list {}", kind.plural());
            return Err(Failure::store(access, answer));
        };
        objects.retain(|object| object.kind == kind && !is_marked(object));

        Ok(objects)
    }

    /// Creates an object; `None` when there is one. What is marked for deletion makes room.
    pub(crate) async fn create(&self, object: Object) -> Result<Option<Object>, Failure> {
        let key = object.key();
        for _ in 0..TRIES {
            let answer = self.line.ask(Step::Create(Box::new(object.clone()))).await;
            if answer != Answer::AlreadyExists {
                let stored = answer.object().map(Some);
                return stored.map_err(|other| Failure::store(format!("create {key}"), other));
            }
            match self.get_any(key.clone()).await? {
                Some(old) if is_marked(&old) => {
                    self.delete(key.clone(), old.revision()).await?;
                }
                Some(_) => return Ok(None),
                None => {}
            }
        }

        Err(Failure::Contended(key.to_string()))
    }

    /// Replaces an object; `None` when it has another revision or is gone.
    pub(crate) async fn update(&self, object: Object) -> Result<Option<Object>, Failure> {
        let access = format!("update {}", object.key());
        let answer = self.line.ask(Step::Update(Box::new(object))).await;
        if answer.is_outrun() {
            return Ok(None);
        }

        answer
            .object()
            .map(Some)
            .map_err(|other| Failure::store(access, other))
    }

    /// Removes an object; `false` when it has another revision or was gone before.
    pub(crate) async fn delete(&self, key: ObjectKey, at: Revision) -> Result<bool, Failure> {
        let access = format!("delete {key}");
        let answer = self.line.ask(Step::Delete(key, at)).await;
        if answer == Answer::Deleted || answer.is_outrun() {
            return Ok(answer == Answer::Deleted);
        }

        Err(Failure::store(access, answer))
    }

    /// Reads a block.
    pub(crate) async fn block(&self, cidr: IpNet) -> Result<Option<Stored<IpamBlock>>, Failure> {
        let key = ObjectKey::cluster(Kind::IPAMBlock, IpamBlock::object_name(cidr));

        self.get(key).await?.map(read).transpose()
    }

    /// Reads a node's affinity to a block.
    pub(crate) async fn affinity(
        &self,
        node: &NodeName,
        cidr: IpNet,
    ) -> Result<Option<Stored<BlockAffinity>>, Failure> {
        let name = BlockAffinity::object_name(node, cidr);
        let key = ObjectKey::cluster(Kind::BlockAffinity, name);

        self.get(key).await?.map(read).transpose()
    }

    /// Reads the record of a handle.
    pub(crate) async fn handle(&self, id: &str) -> Result<Option<Stored<IpamHandle>>, Failure> {
        let key = ObjectKey::cluster(Kind::IPAMHandle, IpamHandle::object_name(id));
        let stored: Option<Stored<IpamHandle>> = self.get(key).await?.map(read).transpose()?;
        match stored {
            Some(stored) if stored.value.id != id => Err(Failure::HandleTaken {
                wanted: id.to_owned(),
                found: stored.value.id,
            }),
            stored => Ok(stored),
        }
    }

    /// Writes a block with its sequence number raised; `None` when somebody else wrote it meanwhile.
    pub(crate) async fn write_block(
        &self,
        read_at: &Stored<IpamBlock>,
        mut block: IpamBlock,
    ) -> Result<Option<Object>, Failure> {
        block.sequence_number = block.sequence_number.saturating_add(1);

        self.update(read_at.replacing(&block)).await
    }

    /// Changes the record of a handle, which is created for its first address, as the node's, and removed after its
    /// last.
    pub(crate) async fn change_handle(
        &self,
        id: &str,
        node: Option<&NodeName>,
        change: impl Fn(&mut IpamHandle) + Send + Sync,
    ) -> Result<(), Failure> {
        for _ in 0..TRIES {
            let stored = self.handle(id).await?;
            let mut handle = match &stored {
                Some(stored) => stored.value.clone(),
                None => IpamHandle::new(id).of_node(node.cloned()),
            };
            change(&mut handle);
            if self.write_handle(stored.as_ref(), &handle).await? {
                return Ok(());
            }
        }

        Err(Failure::Contended(format!("handle {id}")))
    }

    /// Writes the record of a handle over the one that was read; `false` when somebody else was faster.
    pub(crate) async fn write_handle(
        &self,
        read_at: Option<&Stored<IpamHandle>>,
        handle: &IpamHandle,
    ) -> Result<bool, Failure> {
        let Some(stored) = read_at else {
            if handle.blocks.is_empty() {
                return Ok(true);
            }
            return Ok(self.create(handle.to_object()).await?.is_some());
        };
        if handle.blocks.is_empty() {
            let gone = self.delete(stored.object.key(), stored.revision());
            return gone.await;
        }
        if *handle == stored.value {
            return Ok(true);
        }

        Ok(self.update(stored.replacing(handle)).await?.is_some())
    }
}

impl Failure {
    fn store(access: String, answer: Answer) -> Self {
        let reason = match answer {
            Answer::Failed(reason) => reason,
            Answer::Object(_)
            | Answer::Objects(_)
            | Answer::Deleted
            | Answer::NotFound
            | Answer::AlreadyExists
            | Answer::Conflict => "the answer does not fit the question".to_owned(),
        };

        Self::Store { access, reason }
    }
}

/// Parses an object that was read.
pub(crate) fn read<T>(object: Object) -> Result<Stored<T>, Failure>
where
    T: for<'a> TryFrom<&'a Object, Error = FieldError>,
{
    let key = object.key();

    Stored::read(object).map_err(|error| Failure::Unreadable { key, error })
}
