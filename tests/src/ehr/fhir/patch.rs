//! JSON Patch (RFC 6902).

use serde_json::Value;

/// Applies a patch; the document is whole or as it was only to the caller who keeps a copy.
///
/// # Errors
/// Which operation could not be applied, and why.
pub fn apply(document: &mut Value, patch: &Value) -> Result<(), String> {
    let operations = patch.as_array().ok_or("a JSON Patch is an array of operations")?;
    for (index, operation) in operations.iter().enumerate() {
        step(document, operation).map_err(|reason| format!("operation {index}: {reason}"))?;
    }
    Ok(())
}

fn step(document: &mut Value, operation: &Value) -> Result<(), String> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} is missing"));
    let value = || operation.get("value").cloned().ok_or_else(|| "value is missing".to_owned());
    let path = text("path")?;
    match text("op")? {
        "add" => add(document, path, value()?),
        "remove" => remove(document, path).map(drop),
        "replace" => {
            let place = document.pointer_mut(path).ok_or_else(|| format!("{path} does not exist"))?;
            *place = value()?;
            Ok(())
        }
        "move" => {
            let from = text("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err("a value cannot move into itself".to_owned());
            }
            let moved = remove(document, from)?;
            add(document, path, moved)
        }
        "copy" => {
            let from = text("from")?;
            let copied = document.pointer(from).cloned().ok_or_else(|| format!("{from} does not exist"))?;
            add(document, path, copied)
        }
        "test" if document.pointer(path) == Some(&value()?) => Ok(()),
        "test" => Err(format!("{path} is not what the test expects")),
        other => Err(format!("{other} is no operation")),
    }
}

/// The parent of a place, and the last token of its pointer.
fn parent<'a>(document: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (head, last) = path.rsplit_once('/').ok_or("the whole document cannot be changed")?;
    let last = last.replace("~1", "/").replace("~0", "~");
    Ok((document.pointer_mut(head).ok_or_else(|| format!("{head} does not exist"))?, last))
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (parent, last) = parent(document, path)?;
    match parent {
        Value::Object(members) => {
            members.insert(last, value);
            Ok(())
        }
        Value::Array(items) if last == "-" => {
            items.push(value);
            Ok(())
        }
        Value::Array(items) => {
            let index = last.parse::<usize>().ok().filter(|index| *index <= items.len());
            items.insert(index.ok_or_else(|| format!("{path} is outside of the array"))?, value);
            Ok(())
        }
        _ => Err(format!("{path} is inside of a value")),
    }
}

fn remove(document: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, last) = parent(document, path)?;
    match parent {
        Value::Object(members) => members.shift_remove(&last),
        Value::Array(items) => {
            last.parse::<usize>().ok().filter(|index| *index < items.len()).map(|index| items.remove(index))
        }
        _ => None,
    }
    .ok_or_else(|| format!("{path} does not exist"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn operations_apply_in_order() {
        let mut document = json!({"a": [1, 2], "b": {"c~d/e": 1}});
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/-", "value": 3},
            {"op": "add", "path": "/a/0", "value": 0},
            {"op": "remove", "path": "/b/c~0d~1e"},
            {"op": "copy", "from": "/a/1", "path": "/b/x"},
            {"op": "move", "from": "/b/x", "path": "/y"},
            {"op": "replace", "path": "/a/1", "value": "one"},
        ]);
        assert_eq!(apply(&mut document, &patch), Ok(()));
        assert_eq!(document, json!({"a": [0, "one", 2, 3], "b": {}, "y": 1}));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for patch in [
            json!({}),
            json!([{"op": "remove", "path": "/nope"}]),
            json!([{"op": "add", "path": "/a/9", "value": 1}]),
            json!([{"op": "test", "path": "/a", "value": 1}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
            json!([{"op": "replace", "path": "/a"}]),
            json!([{"op": "fly", "path": "/a"}]),
            json!([{"op": "remove", "path": ""}]),
        ] {
            assert!(apply(&mut json!({"a": []}), &patch).is_err(), "{patch}");
        }
    }
}
