//! What a source file says about the workload in it: its type by the extension, its name by the base name.

use std::path::Path;

use super::failure::Failure;

/// Extensions, and the workload type they stand for.
const TYPES: [(&str, &str); 3] = [("js", "v8"), ("mjs", "v8"), ("cjs", "v8")];

/// The workload type that was asked for, else by the file's extension.
pub(super) fn type_or(given: Option<&str>, path: &Path) -> Result<String, Failure> {
    given.map_or_else(|| type_of(path), Ok).map(str::to_owned)
}

/// The workload name that was asked for, else by the file's name.
pub(super) fn name_or(given: Option<&str>, path: &Path) -> Result<String, Failure> {
    given.map_or_else(|| name_of(path), |name| Ok(name.to_owned()))
}

/// A message of the engine with the file instead of the engine's URL for it, so that positions lead somewhere.
pub(super) fn locate(text: &str, name: &str, path: &Path) -> String {
    text.replace(&format!("file:///{name}.js"), &path.display().to_string())
}

/// The workload type by the file's extension.
fn type_of(path: &Path) -> Result<&'static str, Failure> {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    TYPES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(extension))
        .map(|(_, workload_type)| *workload_type)
        .ok_or_else(|| {
            let known: Vec<String> = TYPES
                .iter()
                .map(|(extension, workload_type)| format!(".{extension} is {workload_type}"))
                .collect();
            Failure::usage(format_args!(
                "cannot tell the workload type of {} by its name; expected an extension ({}), or --type",
                path.display(),
                known.join(", ")
            ))
        })
}

/// The workload name: the base name without what names may not hold, so `echofunction.js` is `echofunctionjs`.
fn name_of(path: &Path) -> Result<String, Failure> {
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = base
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    if name.is_empty() {
        return Err(Failure::usage(format_args!(
            "cannot make a workload name from {}; expected letters or digits in its name, or --name",
            path.display()
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_they_may_not_hold() {
        let cases = [
            ("src/echofunction.js", Some("echofunctionjs")),
            ("my-fn_2.mjs", Some("my-fn_2mjs")),
            ("grüße an alle.js", Some("greanallejs")),
            ("….…", None),
        ];
        for (path, expected) in cases {
            assert_eq!(name_of(Path::new(path)).ok().as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn types_come_from_extensions() {
        for path in ["a.js", "a.MJS", "dir.x/a.cjs"] {
            assert_eq!(type_of(Path::new(path)).ok(), Some("v8"), "{path}");
        }
        for path in ["a", "a.py", "js", ".js"] {
            let failure = type_of(Path::new(path)).err();
            let message = failure.and_then(|failure| failure.message);
            assert!(message.is_some_and(|message| message.contains(".js is v8")), "{path}");
        }
    }
}
