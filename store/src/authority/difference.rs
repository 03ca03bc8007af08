//! In which fields two versions of an object differ.

use serde_json::{Map, Value};

/// Calls `visit` with the path of every field in which two values differ.
///
/// An object that comes or goes differs in each of its fields, so that none hides in it.
pub(super) fn differences(old: &Value, new: &Value, visit: &mut impl FnMut(&[&str])) {
    walk(Some(old), Some(new), &mut Vec::new(), visit);
}

fn walk<'a>(
    old: Option<&'a Value>,
    new: Option<&'a Value>,
    path: &mut Vec<&'a str>,
    visit: &mut impl FnMut(&[&str]),
) {
    if old == new {
        return;
    }
    let fields = |value: Option<&'a Value>| value.and_then(Value::as_object);
    let scalar = |value: Option<&'a Value>| value.is_some_and(|value| !value.is_object());
    let (before, after) = (fields(old), fields(new));
    let empty = before.is_none_or(Map::is_empty) && after.is_none_or(Map::is_empty);
    if scalar(old) || scalar(new) || empty {
        return visit(path);
    }
    let mut names: Vec<&str> = Vec::new();
    for map in [before, after].into_iter().flatten() {
        names.extend(map.keys().map(String::as_str));
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        path.push(name);
        let field = |map: Option<&'a Map<String, Value>>| map.and_then(|map| map.get(name));
        walk(field(before), field(after), path, visit);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_changed_field_is_named_also_inside_an_object_that_comes_or_goes() {
        let old = json!({"a": {"x": 1}, "b": {"y": [1]}, "same": {"z": 1}, "e": {}});
        let new = json!({"b": {"y": [2], "n": {"m": 3}}, "same": {"z": 1}, "s": "t"});
        let mut seen = Vec::new();

        differences(&old, &new, &mut |path| seen.push(path.join(".")));

        assert_eq!(seen, ["a.x", "b.n.m", "b.y", "e", "s"]);
    }
}
