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
    /// Spoils the first row behind the target's back.
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
    let sets: Vec<_> =
        case.rows.iter().map(|(key, row)| Change::Set(key.clone(), row.clone())).collect();
    let unsets: Vec<_> =
        case.rows.iter().map(|(key, _)| Change::<T::Key, T::Row>::Unset(key.clone())).collect();
    let holds_all = |target: &mut T| {
        let observed = target.observe().unwrap();
        case.rows.iter().all(|(key, row)| observed.get(key) == Some(row))
    };

    assert!(target.observe().unwrap().is_empty(), "nothing is there at first");
    assert!(target.apply(&unsets).unwrap().is_empty(), "unsetting what is absent succeeds");

    assert!(target.apply(&sets).unwrap().is_empty(), "every row can be set");
    assert!(holds_all(&mut target), "what was set is observed: {:?}", target.observe().unwrap());
    let print = (case.print)();

    assert!(target.apply(&sets).unwrap().is_empty(), "setting again succeeds");
    assert_eq!((case.print)(), print, "setting again changes nothing");

    drop(target);
    let mut target = (case.make)();
    assert_eq!(holds_all(&mut target), case.recognises, "what a restarted target sees");
    target.apply(&sets).unwrap();
    assert!(holds_all(&mut target), "a restarted target adopts");
    assert_eq!((case.print)(), print, "adopting changes nothing");

    (case.spoil)();
    assert!(!holds_all(&mut target), "what was spoilt is noticed");
    target.apply(&sets[..1]).unwrap();
    assert!(holds_all(&mut target), "and repaired");

    if let Some((key, row)) = &case.changed {
        target.apply(&[Change::Set(key.clone(), row.clone())]).unwrap();
        assert_eq!(target.observe().unwrap().get(key), Some(row), "a row is changed in place");
        target.apply(&sets).unwrap();
        assert!(holds_all(&mut target), "and back");
    }

    target.apply(&unsets).unwrap();
    target.observe().unwrap();
    target.apply(&unsets).unwrap();
    let left = target.observe().unwrap();
    assert!(!case.removes || left.is_empty(), "what was unset is gone: {left:?}");
}
