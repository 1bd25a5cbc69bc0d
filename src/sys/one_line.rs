//! One line stays one line, and reads as it is written. In text from outside (paths, words of filters, others'
//! messages) it escapes control characters, and characters that make a terminal reorder or hide text.

use std::fmt::{self, Display, Write};

/// A text, shown in one line.
pub struct OneLine<T>(pub T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(to), "{}", self.0)
    }
}

struct Escaping<'to, 'text>(&'to mut fmt::Formatter<'text>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, found)) = rest.char_indices().find(|(_, found)| misleads(*found)) {
            self.0.write_str(&rest[..at])?;
            write!(self.0, "{}", found.escape_default())?;
            rest = &rest[at + found.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Control characters, line separators, marks of direction, and characters without width.
fn misleads(found: char) -> bool {
    found.is_control()
        || matches!(
            found,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// The start of a text that is too long for a line.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_misleads_is_escaped_and_the_rest_is_as_it_is() {
        for (text, expected) in [
            ("/tmp/ä \\ \"x\" 漢字", "/tmp/ä \\ \"x\" 漢字"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\u{0}"),
            ("\x1b[2J\x7f\u{85}\u{9b}", "\\u{1b}[2J\\u{7f}\\u{85}\\u{9b}"),
            (
                "\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}",
                "\\u{2028}\\u{2029}\\u{202a}\\u{202e}\\u{2066}\\u{2069}",
            ),
            ("\u{200b}\u{200f}\u{61c}\u{feff}", "\\u{200b}\\u{200f}\\u{61c}\\u{feff}"),
        ] {
            assert_eq!(OneLine(text).to_string(), expected);
        }
        assert_eq!(OneLine(format_args!("{} {}", "a\nb", 7)).to_string(), "a\\nb 7");
    }

    proptest! {
        #[test]
        fn no_text_makes_two_lines_of_one(text in ".*|[\\x00-\\x1f\\u{80}-\\u{9f}\\u{2000}-\\u{2070}\\u{feff}]*") {
            let line = OneLine(&text).to_string();
            prop_assert!(!line.contains(misleads), "{:?}", line);
        }
    }
}
