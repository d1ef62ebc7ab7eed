//! What a person looks at after a run: the curves as a drawing, and one page with everything and nothing from outside.

mod charts;
mod curves;
mod page;
mod tables;
#[cfg(test)]
mod tests;

pub use curves::{CURVES_FILE, draw};
pub use page::{REPORT_FILE, page};

/// Text as HTML shows it, in an element or in a quoted attribute.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}
