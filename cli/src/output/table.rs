//! Tables that fit the terminal.

use super::Output;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};

/// Rows under a head, for people.
#[must_use]
pub fn table(output: &Output, head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if output.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(head.iter().map(|h| Cell::new(h).add_attribute(Attribute::Bold)));
    for row in rows {
        // What people typed may hold line ends, and what terminals obey.
        let row = row.into_iter().map(|text| text.replace(char::is_control, " "));
        table.add_row(row.map(|text| match colour_of(&text) {
            Some(colour) if output.colour => Cell::new(text).fg(colour),
            _ => Cell::new(text),
        }));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Words of states that carry a colour wherever they are.
fn colour_of(word: &str) -> Option<Color> {
    match word {
        "ok" | "connected" | "running" | "value" => Some(Color::Green),
        "failed" | "absent" => Some(Color::Red),
        "waiting" | "active" | "queued" | "cancelled" | "stopped" => Some(Color::Yellow),
        _ => None,
    }
}

/// `1 task`, `7 tasks`.
#[must_use]
pub fn count(n: u64, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_where_nobody_watches() {
        let output = Output { json: false, quiet: false, colour: false, live: false };
        let rows = vec![vec!["j1".into(), "ok".into()], vec!["j12".into(), "failed:\n\x1b[31mred".into()]];
        insta::assert_snapshot!(table(&output, &["JOB", "STATE"], rows), @r"
         JOB  STATE
         j1   ok
         j12  failed:  [31mred
        ");
    }
}
