//! A store in memory that compares and swaps: for models, benchmarks and dry runs.

use std::collections::BTreeMap;

use model::{Kind, NodeName, Object, ObjectKey};

use crate::step::{Answer, Step};

/// Objects by key. Names are unique; a write must carry the revision that is stored.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    objects: BTreeMap<ObjectKey, Object>,
    /// How often each object was written, also those that are gone: its revision.
    revisions: BTreeMap<ObjectKey, u64>,
    writes: u64,
    reads: u64,
}

impl Memory {
    /// Returns a store with these objects.
    pub fn with(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut memory = Self::default();
        for object in objects {
            memory.put(object);
        }
        memory.writes = 0;

        memory
    }

    /// Takes one step.
    pub fn perform(&mut self, step: Step) -> Answer {
        if !step.is_write() {
            self.reads += 1;
        }
        match step {
            Step::Get(key) => match self.objects.get(&key) {
                Some(object) => Answer::Object(Box::new(object.clone())),
                None => Answer::NotFound,
            },
            Step::List(kind, node) => Answer::Objects(self.list(kind, node.as_ref())),
            Step::Create(object) if self.objects.contains_key(&object.key()) => {
                Answer::AlreadyExists
            }
            Step::Create(object) => Answer::Object(Box::new(self.put(*object))),
            Step::Update(object) => match self.objects.get(&object.key()) {
                None => Answer::NotFound,
                Some(old) if old.revision() != object.revision() => Answer::Conflict,
                Some(_) => Answer::Object(Box::new(self.put(*object))),
            },
            Step::Delete(key, at) => match self.objects.get(&key) {
                None => Answer::NotFound,
                Some(old) if old.revision() != at => Answer::Conflict,
                Some(_) => {
                    self.remove(&key);
                    Answer::Deleted
                }
            },
        }
    }

    /// Stores an object whatever is there, and returns it as stored.
    pub fn put(&mut self, mut object: Object) -> Object {
        self.writes += 1;
        let key = object.key();
        let revision = self.revisions.entry(key.clone()).or_default();
        *revision += 1;
        object.metadata.resource_version = Some(revision.to_string());
        self.objects.insert(key, object.clone());

        object
    }

    /// Removes an object whatever its revision.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Object> {
        self.writes += 1;

        self.objects.remove(key)
    }

    /// Returns every object.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values()
    }

    /// Returns how many writes were made.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Returns how many reads were made.
    pub const fn reads(&self) -> u64 {
        self.reads
    }

    fn list(&self, kind: Kind, node: Option<&NodeName>) -> Vec<Object> {
        let first = ObjectKey {
            kind,
            namespace: None,
            name: String::new(),
        };
        let of_kind = self.objects.range(first..).map(|(_, object)| object);
        let of_kind = of_kind.take_while(|object| object.kind == kind);
        let is_of = |object: &&Object| match node {
            None => true,
            Some(node) => {
                let spec = object.body.get("spec");
                let owner = spec.and_then(|spec| spec.get("node")?.as_str());
                owner == Some(node.as_str())
            }
        };

        of_kind.filter(is_of).cloned().collect()
    }
}
