//! What every target promises, asked of each of them against the kernel.

use std::fmt::Debug;

use dataplane::Target;
use model::Change;

/// A case of the contract.
pub(crate) struct Case<T: Target> {
    /// Makes a target, as a restarted agent does.
    pub(crate) make: Box<dyn Fn() -> T>,
    /// Rows to be held.
    pub(crate) rows: Vec<(T::Key, T::Row)>,
    /// Other contents for one of them; none where rows have no contents.
    pub(crate) changed: Option<(T::Key, T::Row)>,
    /// Spoils a row behind the target's back.
    pub(crate) spoil: Box<dyn Fn()>,
    /// Whether a restarted target recognises what is there without setting it again.
    pub(crate) recognises: bool,
    /// Whether a row that is unset goes from the kernel.
    pub(crate) removes: bool,
    /// A print of the kernel's own view, which must not change where nothing is to be done.
    pub(crate) print: Box<dyn Fn() -> String>,
}

/// Asks a target for all of the contract.
pub(crate) fn check<T>(case: Case<T>)
where
    T: Target,
    T::Key: Debug,
    T::Row: Debug,
{
    let mut target = (case.make)();
    assert!(
        target.observe().unwrap().is_empty(),
        "nothing is there at first"
    );
    case.unset(&mut target);

    case.set(&mut target);
    assert!(
        case.holds(&mut target),
        "what was set is observed: {:?}",
        target.observe().unwrap()
    );
    let print = (case.print)();
    case.set(&mut target);
    assert_eq!((case.print)(), print, "setting again changes nothing");

    drop(target);
    let mut target = (case.make)();
    assert_eq!(
        case.holds(&mut target),
        case.recognises,
        "what a restarted target sees"
    );
    case.set(&mut target);
    assert!(case.holds(&mut target), "a restarted target adopts");
    assert_eq!((case.print)(), print, "adopting changes nothing");

    (case.spoil)();
    assert!(!case.holds(&mut target), "what was spoilt is noticed");
    case.set(&mut target);
    assert!(case.holds(&mut target), "and repaired");

    case.change_one(&mut target);

    case.unset(&mut target);
    target.observe().unwrap();
    case.unset(&mut target);
    let left = target.observe().unwrap();
    assert!(
        !case.removes || left.is_empty(),
        "what was unset is gone: {left:?}"
    );
}

impl<T: Target> Case<T>
where
    T::Key: Debug,
    T::Row: Debug,
{
    fn set(&self, target: &mut T) {
        let rows = self.rows.iter();
        let sets: Vec<_> = rows
            .map(|(key, row)| Change::Set(key.clone(), row.clone()))
            .collect();

        assert!(
            target.apply(&sets).unwrap().is_empty(),
            "every row can be set"
        );
    }

    fn unset(&self, target: &mut T) {
        let unsets: Vec<_> = self
            .rows
            .iter()
            .map(|(key, _)| Change::Unset(key.clone()))
            .collect();

        assert!(
            target.apply(&unsets).unwrap().is_empty(),
            "also what is absent can be unset"
        );
    }

    fn holds(&self, target: &mut T) -> bool {
        let observed = target.observe().unwrap();

        self.rows
            .iter()
            .all(|(key, row)| observed.get(key) == Some(row))
    }

    fn change_one(&self, target: &mut T) {
        let Some((key, row)) = &self.changed else {
            return;
        };

        target
            .apply(&[Change::Set(key.clone(), row.clone())])
            .unwrap();
        let observed = target.observe().unwrap();
        assert_eq!(observed.get(key), Some(row), "a row is changed in place");

        self.set(target);
        assert!(self.holds(target), "and back");
    }
}
