//! How the rules that a chain has become those that it should have, by as few rules as can be.

/// Rules that go and rules that come; everything else stays as it is, counters included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    /// Places of rules that go, among those that the chain has.
    pub(super) removed: Vec<usize>,
    /// Places of rules that come, among those that it should have, in order; and in front of which of those that it
    /// has, `None` being the end.
    pub(super) added: Vec<(usize, Option<usize>)>,
    /// Where each rule that it should have is among those that it has; `None` for one that comes.
    pub(super) kept: Vec<Option<usize>>,
}

/// More changes of a chain than this are not worth it: the kernel looks for each along the whole chain.
const MOST: usize = 1_000;

/// How many pairs of rules are compared at most, in 2 bytes each. What differs beyond that is replaced whole.
const PAIRS: usize = 1 << 18;

/// Compares `had` rules with `wanted` others. `None` where the chain had better be written anew.
pub(super) fn between(
    had: usize,
    wanted: usize,
    is_same: impl Fn(usize, usize) -> bool,
) -> Option<Edit> {
    let least = had.min(wanted);
    let front = (0..least)
        .take_while(|place| is_same(*place, *place))
        .count();
    let back = (0..least - front)
        .take_while(|place| is_same(had - 1 - place, wanted - 1 - place))
        .count();
    let (had_end, wanted_end) = (had - back, wanted - back);
    let middle = common(front..had_end, front..wanted_end, is_same);

    let mut edit = Edit::default();
    let kept = (0..front).map(|place| (place, place));
    let kept = kept.chain(middle);
    let kept = kept.chain((0..back).map(|place| (had_end + place, wanted_end + place)));
    let (mut old, mut new) = (0, 0);
    for (kept_old, kept_new) in kept.chain([(had, wanted)]) {
        edit.removed.extend(old..kept_old);
        let before = (kept_old < had).then_some(kept_old);
        edit.added
            .extend((new..kept_new).map(|place| (place, before)));
        edit.kept.extend((new..kept_new).map(|_| None));
        edit.kept.extend(before.map(Some));
        (old, new) = (kept_old + 1, kept_new + 1);
    }

    let changes = edit.removed.len() + edit.added.len();
    (changes <= MOST && changes < wanted).then_some(edit)
}

/// Returns the pairs of a longest common subsequence; none where that would take too long to find.
fn common(
    old: std::ops::Range<usize>,
    new: std::ops::Range<usize>,
    is_same: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    if old.is_empty() || new.is_empty() || (old.len() + 1).saturating_mul(width) > PAIRS {
        return Vec::new();
    }
    // longest[i * width + j]: of what is behind the i-th old and the j-th new.
    let mut longest = vec![0_u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i * width + j] = if is_same(old.start + i, new.start + j) {
                longest[(i + 1) * width + j + 1].saturating_add(1)
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }

    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < old.len() && j < new.len() {
        if is_same(old.start + i, new.start + j) {
            pairs.push((old.start + i, new.start + j));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }

    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(old: &str, new: &str) -> Option<Edit> {
        let (old, new) = (old.as_bytes(), new.as_bytes());

        between(old.len(), new.len(), |i, j| old[i] == new[j])
    }

    /// Does to a text what the kernel does to a chain.
    fn done(old: &str, new: &str, edit: &Edit) -> String {
        let mut rules: Vec<(Option<usize>, char)> = old
            .char_indices()
            .map(|(place, rule)| (Some(place), rule))
            .collect();
        rules.retain(|(place, _)| place.is_none_or(|place| !edit.removed.contains(&place)));
        for (place, before) in &edit.added {
            let at = rules.iter().position(|(known, _)| known == before);
            let at = before.and(at).unwrap_or(rules.len());
            rules.insert(at, (None, new.as_bytes()[*place].into()));
        }
        let kept: Vec<_> = rules.iter().map(|(place, _)| *place).collect();
        assert_eq!(kept, edit.kept, "{old} {new}");

        rules.into_iter().map(|(_, rule)| rule).collect()
    }

    #[test]
    fn one_rule_more_or_less_is_one_change() {
        let added = |place, before| Edit {
            removed: Vec::new(),
            added: vec![(place, before)],
            kept: (0..4)
                .map(|new| match new {
                    _ if new == place => None,
                    _ if new > place => Some(new - 1),
                    _ => Some(new),
                })
                .collect(),
        };
        assert_eq!(edit("abc", "xabc"), Some(added(0, Some(0))));
        assert_eq!(edit("abc", "abxc"), Some(added(2, Some(2))));
        assert_eq!(edit("abc", "abcx"), Some(added(3, None)));
        let removed = edit("abc", "ac").unwrap();
        assert_eq!((removed.removed, removed.added), (vec![1], vec![]));
    }

    #[test]
    fn whatever_changes_the_chain_becomes_what_it_should_be() {
        let mut seed = 1_u64;
        let mut below = |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % most
        };
        let mut edited = 0;
        for _ in 0..20_000 {
            let mut text = |letters| -> String {
                let letters = (0..below(letters)).map(|_| b"abcd"[below(4) as usize] as char);
                letters.collect()
            };
            let (old, new) = (text(9), text(9));
            if let Some(edit) = edit(&old, &new) {
                edited += 1;
                assert_eq!(done(&old, &new, &edit), new, "{old}");
                assert_eq!(edit.removed.len() + new.len(), edit.added.len() + old.len());
            }
        }
        assert!(edited > 5_000, "{edited}");
    }

    #[test]
    fn a_chain_that_changes_whole_is_written_anew() {
        assert_eq!(edit("abc", "xyz"), None);
        assert_eq!(edit("abc", ""), None);
        assert_eq!(between(5_000, 5_000, |i, j| i == j && i % 2 == 0), None);
        let far = between(5_000, 5_001, |i, j| i == j && i < 100 || i + 1 == j);
        assert_eq!(far.unwrap().added, [(100, Some(100))]);
    }
}
