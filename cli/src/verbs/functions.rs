//! `function ..`: Python functions that the broker knows.

use crate::Context;
use crate::args::FunctionVerb;
use crate::args::manage::split_function;
use crate::client::{Again, Body};
use crate::error::{CliError, Result, io_error};
use crate::exit::Exit;
use crate::output::table::table;
use crate::units::{show_bytes, show_time};
use hyper::Method;
use pf_protocol::api::FunctionRow;
use pf_protocol::job::{Function, FunctionKind};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Functions {
    functions: Vec<FunctionRow>,
}

/// `pf function ..`.
pub async fn function(context: &Context, verb: FunctionVerb) -> Result<Exit> {
    let client = super::daemon::client(context).await?;
    let output = &context.output;
    match verb {
        FunctionVerb::List => {
            let functions = client.get::<Functions>("/v1/functions").await?.functions;
            let ids: Vec<String> = functions.iter().map(|f| f.function.to_string()).collect();
            if output.json {
                functions.iter().try_for_each(|f| output.json(f))?;
            } else if functions.is_empty() {
                output.say("no functions");
            } else {
                output.answer(&(), &ids, || {
                    let rows = functions.iter().map(|f| {
                        vec![
                            f.name.clone(),
                            kind_word(f.kind).into(),
                            show_bytes(f.size_bytes),
                            show_time(f.registered_ms),
                            f.function.to_string(),
                        ]
                    });
                    table(output, &["NAME", "KIND", "SIZE", "REGISTERED (UTC)", "ID"], rows.collect())
                })?;
            }
        }
        FunctionVerb::Show { function } => {
            let bytes = client.get_bytes(&format!("/v1/functions/{function}")).await?;
            output.content("function", &function.to_string(), &bytes)?;
        }
        FunctionVerb::Register { function } => {
            let function = read_function(&function)?;
            let id = function.id();
            let body = Body {
                media_type: "application/octet-stream",
                bytes: function.bytes.into(),
                headers: vec![
                    ("X-Pilotfish-Kind", kind_word(function.kind).into()),
                    ("X-Pilotfish-Name", function.name.clone()),
                ],
            };
            client
                .call::<serde_json::Value>(Method::PUT, &format!("/v1/functions/{id}"), body, Again::Yes)
                .await?;
            output.answer(&json!({"function": id, "name": function.name}), &[id.to_string()], || {
                id.to_string()
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn kind_word(kind: FunctionKind) -> &'static str {
    match kind {
        FunctionKind::Reference => "reference",
        FunctionKind::Cloudpickle => "cloudpickle",
        FunctionKind::Source => "source",
    }
}

/// The function of `FILE:NAME`, by its source.
fn read_function(text: &str) -> Result<Function> {
    let (file, name) = split_function(text).ok_or_else(|| {
        CliError::usage(format!("{text:?} is not FILE:NAME")).hint("for instance simulate.py:main")
    })?;
    let source = std::fs::read_to_string(&file).map_err(|e| {
        let mut error = io_error(format!("read {}", file.display()), e);
        error.exit = Exit::Usage;
        error
    })?;
    let defined = |line: &str| {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ").unwrap_or_default();
        rest.strip_prefix(name.as_str()).is_some_and(|after| after.trim_start().starts_with('('))
            || line.strip_prefix(name.as_str()).is_some_and(|after| after.trim_start().starts_with('='))
    };
    if !source.lines().any(defined) {
        return Err(CliError::usage(format!(
            "{} defines no function {name} at its top level",
            file.display()
        )));
    }
    let bytes = serde_json::to_vec(&json!({"name": name, "source": source}));
    let bytes = bytes.map_err(|e| CliError::internal("encode a function").because(e))?;
    let module = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Function { kind: FunctionKind::Source, bytes, name: format!("{module}.{name}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_in_its_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("sim.py");
        std::fs::write(&file, "def main(x):\n    return x\nother = main\n").expect("write");
        let path = file.display();
        assert_eq!(read_function(&format!("{path}:main")).expect("main").name, "sim.main");
        assert!(read_function(&format!("{path}:other")).is_ok());
        assert!(
            read_function(&format!("{path}:mai"))
                .unwrap_err()
                .to_string()
                .ends_with("defines no function mai at its top level")
        );
        assert!(read_function("sim.py").is_err());
        assert!(read_function("/nowhere.py:f").is_err());
    }
}
