//! How a reconciler behaves towards a kernel that may refuse, forget or be tampered with.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use dataplane::{Absent, Outcome, Reconciler, Target};
use model::{Change, Moment, Table};

#[test]
fn what_is_found_after_a_restart_is_kept_until_the_plan_is_in_sync() {
    let (kernel, mut reconciler) = reconciler([("stale", 1)]);
    let mut desired = desired([("wanted", 2)]);

    pass(&mut reconciler, &mut desired, false, at(0));
    assert_eq!(kernel.rows(), [("stale", 1), ("wanted", 2)]);

    pass(&mut reconciler, &mut desired, true, at(0));
    assert_eq!(kernel.rows(), [("wanted", 2)]);
}

#[test]
fn even_a_row_of_this_run_is_not_removed_before_the_plan_is_in_sync() {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([("wanted", 2)]);
    pass(&mut reconciler, &mut desired, false, at(0));

    desired.unset(&"wanted");
    pass(&mut reconciler, &mut desired, false, at(1));
    assert_eq!(kernel.rows(), [("wanted", 2)]);

    pass(&mut reconciler, &mut desired, true, at(2));
    assert_eq!(kernel.rows(), []);
}

#[test]
fn the_first_half_removes_nothing() {
    let (kernel, mut reconciler) = reconciler([("stale", 1)]);

    assert_eq!(
        reconciler.set(&mut desired([("wanted", 2)]), true, at(0)),
        Outcome::Converged
    );
    assert_eq!(kernel.rows(), [("stale", 1), ("wanted", 2)]);

    assert_eq!(reconciler.unset(at(0)), Outcome::Converged);
    assert_eq!(kernel.rows(), [("wanted", 2)]);
}

#[test]
fn a_refused_change_is_tried_again_later_and_later_and_is_not_lost() {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([]);
    pass(&mut reconciler, &mut desired, true, at(0));

    desired.set("wanted", 1);
    kernel.0.borrow_mut().refuse = true;
    assert_eq!(
        reconciler.set(&mut desired, true, at(0)),
        Outcome::Failed("refused".into())
    );
    assert_eq!(reconciler.retry_at(), Some(at(100)));
    assert_eq!(
        reconciler.set(&mut desired, true, at(100)),
        Outcome::Failed("refused".into())
    );
    assert_eq!(reconciler.retry_at(), Some(at(300)));

    kernel.0.borrow_mut().refuse = false;
    assert_eq!(
        reconciler.set(&mut desired, true, at(299)),
        Outcome::Failed("refused".into())
    );
    assert_eq!(
        reconciler.set(&mut desired, true, at(300)),
        Outcome::Converged
    );
    assert_eq!(
        (kernel.rows(), reconciler.retry_at()),
        (vec![("wanted", 1)], None)
    );
}

#[test]
fn whatever_is_there_first_becomes_what_is_wanted() {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let rows = |mut code: u32| {
        let mut rows = Vec::new();
        for name in NAMES {
            let value = u8::try_from(code % 3).unwrap();
            rows.extend((value > 0).then_some((name, value)));
            code /= 3;
        }
        rows
    };
    for code in 0..3u32.pow(10) {
        let (there, wanted) = (rows(code / 243), rows(code % 243));
        let (kernel, mut reconciler) = reconciler([]);
        kernel.0.borrow_mut().rows = there.into_iter().collect();
        let mut desired = desired([]);
        for (name, value) in &wanted {
            desired.set(*name, *value);
        }

        pass(&mut reconciler, &mut desired, true, at(0));

        assert_eq!(kernel.rows(), wanted);
    }
}

#[test]
fn a_changed_plan_is_tried_at_once_whatever_was_refused_before() {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([("wrong", 1)]);
    kernel.0.borrow_mut().refuse = true;
    reconciler.set(&mut desired, true, at(0));

    kernel.0.borrow_mut().refuse = false;
    desired.unset(&"wrong");
    desired.set("right", 1);

    assert_eq!(
        reconciler.set(&mut desired, true, at(1)),
        Outcome::Converged
    );
    assert_eq!(kernel.rows(), [("right", 1)]);
}

#[test]
fn a_missing_row_is_named_and_holds_up_no_other() {
    let (kernel, mut reconciler) = reconciler([("stale", 1)]);
    let mut desired = desired([("missing", 1), ("wanted", 1)]);

    let incomplete = Outcome::Incomplete("missing is not there".into());
    assert_eq!(reconciler.set(&mut desired, true, at(0)), incomplete);
    assert_eq!(reconciler.unset(at(0)), incomplete);
    assert_eq!(kernel.rows(), [("wanted", 1)]);
    assert_eq!(reconciler.retry_at(), Some(at(100)));

    desired.unset(&"missing");
    assert_eq!(
        reconciler.set(&mut desired, true, at(1)),
        Outcome::Converged
    );
    assert_eq!(reconciler.retry_at(), None);
}

#[test]
fn nothing_is_removed_while_something_is_refused() {
    let (kernel, mut reconciler) = reconciler([("guard", 1)]);
    let mut desired = desired([("route", 1)]);
    kernel.0.borrow_mut().refuse = true;

    reconciler.set(&mut desired, true, at(0));
    kernel.0.borrow_mut().refuse = false;

    assert_eq!(reconciler.unset(at(0)), Outcome::Failed("refused".into()));
    assert_eq!(kernel.rows(), [("guard", 1)]);
}

#[test]
fn a_converged_target_is_left_alone() {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([("wanted", 1)]);
    pass(&mut reconciler, &mut desired, true, at(0));
    let calls = kernel.0.borrow().calls;

    pass(&mut reconciler, &mut desired, true, at(1));

    assert_eq!(kernel.0.borrow().calls, calls);
}

#[test]
fn an_object_deleted_behind_our_back_is_restored_once_it_is_suspected() {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([("wanted", 1)]);
    pass(&mut reconciler, &mut desired, true, at(0));

    kernel.0.borrow_mut().rows.clear();
    reconciler.distrust();
    pass(&mut reconciler, &mut desired, true, at(1));

    assert_eq!(kernel.rows(), [("wanted", 1)]);
}

/// Somebody removes a row whenever it is there, and is noticed at once; returns when it was restored.
fn restored(row: &'static str, until: u64) -> (Reconciler<Kernel>, Vec<u64>) {
    let (kernel, mut reconciler) = reconciler([]);
    let mut desired = desired([(row, 1)]);
    let mut times = Vec::new();
    reconciler.set(&mut desired, true, at(0));
    reconciler.unset(at(0));
    for tenth in 1..until * 10 {
        if kernel.0.borrow_mut().rows.remove(row).is_some() {
            reconciler.distrust();
        }
        reconciler.set(&mut desired, true, at(tenth * 100));
        reconciler.unset(at(tenth * 100));
        if kernel.rows() == [(row, 1)] {
            times.push(tenth / 10);
        }
    }

    (reconciler, times)
}

#[test]
fn a_row_that_somebody_keeps_removing_is_restored_ever_more_rarely_and_missing_meanwhile() {
    let (reconciler, times) = restored("wanted", 40);

    let seconds: Vec<u64> = times[9..].to_vec();
    assert_eq!(seconds, [2, 4, 8, 16, 32], "{times:?}");
    assert_eq!(reconciler.contested().collect::<Vec<_>>(), [&"wanted"]);
    assert!(reconciler.absent()[&"wanted"].contains("somebody else"));
}

#[test]
fn what_keeps_plaintext_in_is_restored_at_once_however_often() {
    let (reconciler, times) = restored("guard", 40);

    assert_eq!(times.len(), 399);
    assert_eq!(reconciler.contested().collect::<Vec<_>>(), [&"guard"]);
}

#[test]
fn a_row_that_the_plan_changes_often_is_nobodys_fight() {
    let (_, mut reconciler) = reconciler([]);
    let mut desired = desired([]);
    for turn in 0..100 {
        desired.set("wanted", turn);
        reconciler.distrust();
        pass(&mut reconciler, &mut desired, true, at(u64::from(turn)));
    }

    assert_eq!(reconciler.contested().count(), 0);
}

#[test]
fn what_the_kernel_refuses_again_and_again_is_nobodys_fight() {
    let (kernel, mut reconciler) = reconciler([("stale", 1)]);
    let mut desired = desired([]);
    reconciler.set(&mut desired, true, at(0));
    desired.set("wanted", 1);
    kernel.0.borrow_mut().refuse = true;
    for second in 0..100 {
        reconciler.distrust();
        let outcome = reconciler.set(&mut desired, true, at(second * 500));
        assert_eq!(outcome, Outcome::Failed("refused".into()));
    }
    assert_eq!(reconciler.contested().count(), 0);

    kernel.0.borrow_mut().refuse = false;
    reconciler.distrust();
    pass(&mut reconciler, &mut desired, true, at(50_000));
    assert_eq!(kernel.rows(), [("wanted", 1)]);
}

#[test]
fn a_row_whose_surroundings_are_missing_is_nobodys_fight() {
    let (_, mut reconciler) = reconciler([]);
    let mut desired = desired([("missing", 1)]);
    for second in 0..100 {
        reconciler.distrust();
        reconciler.set(&mut desired, true, at(second * 500));
        reconciler.unset(at(second * 500));
    }

    assert_eq!(reconciler.contested().count(), 0);
    assert_eq!(reconciler.absent()[&"missing"], "missing is not there");
}

/// A kernel in memory. Cloning it gives another handle to the same kernel.
#[derive(Clone, Default)]
struct Kernel(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    rows: BTreeMap<&'static str, u8>,
    refuse: bool,
    calls: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

impl Target for Kernel {
    type Key = &'static str;
    type Row = u8;
    type Error = Refused;

    fn observe(&mut self) -> Result<BTreeMap<&'static str, u8>, Refused> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;

        Ok(state.rows.clone())
    }

    fn must_hold(&self, key: &&'static str, _: Option<&u8>) -> bool {
        *key == "guard"
    }

    fn apply(
        &mut self,
        changes: &[Change<&'static str, u8>],
    ) -> Result<Vec<Absent<&'static str>>, Refused> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        if state.refuse {
            return Err(Refused);
        }

        let mut absent = Vec::new();
        for change in changes {
            match change {
                Change::Set(key @ "missing", _) => {
                    absent.push(Absent {
                        key: *key,
                        reason: format!("{key} is not there"),
                    });
                }
                Change::Set(key, row) => drop(state.rows.insert(key, *row)),
                Change::Unset(key) => drop(state.rows.remove(key)),
            }
        }

        Ok(absent)
    }
}

impl Kernel {
    fn rows(&self) -> Vec<(&'static str, u8)> {
        self.0
            .borrow()
            .rows
            .iter()
            .map(|(key, row)| (*key, *row))
            .collect()
    }
}

fn pass(
    reconciler: &mut Reconciler<Kernel>,
    desired: &mut Table<&'static str, u8>,
    in_sync: bool,
    now: Moment,
) {
    assert_eq!(reconciler.set(desired, in_sync, now), Outcome::Converged);
    assert_eq!(reconciler.unset(now), Outcome::Converged);
}

fn reconciler<const N: usize>(rows: [(&'static str, u8); N]) -> (Kernel, Reconciler<Kernel>) {
    let kernel = Kernel::default();
    kernel.0.borrow_mut().rows.extend(rows);

    (kernel.clone(), Reconciler::new("test", kernel))
}

fn desired<const N: usize>(rows: [(&'static str, u8); N]) -> Table<&'static str, u8> {
    let mut table = Table::default();
    for (key, row) in rows {
        table.set(key, row);
    }

    table
}

fn at(milliseconds: u64) -> Moment {
    Moment::START + Duration::from_millis(milliseconds)
}
