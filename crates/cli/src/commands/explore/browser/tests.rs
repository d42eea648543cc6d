use std::fs;
use std::path::Path;

use layer::{Account, Layer, Namespace};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::commands::explore::draw::draw;
use crate::commands::explore::stack::{Known, Origin};

/// Two layers: `a/deep/f`, `b` of 1000 bytes and `z`; above them `a/deep/g`, and `b` deleted.
fn stack() -> Stack {
    let temp = tempfile::tempdir().expect("a directory");
    let file = |path: &str, bytes: usize| {
        let at = temp.path().join(path);
        fs::create_dir_all(at.parent().expect("a parent")).expect("directories");
        fs::write(at, vec![b'x'; bytes]).expect("a file");
    };
    for (path, bytes) in
        [("0/a/deep/f", 1), ("0/b", 1000), ("0/z", 2), ("1/a/deep/g", 3), ("1/.wh.b", 0)]
    {
        file(path, bytes);
    }
    let open = |name: &str| {
        Layer::open(&Path::new(temp.path()).join(name), Namespace::User).expect("a layer")
    };
    let account = Account::of(&["0", "1"].map(open)).expect("an account");
    let known = ["COPY a", "RUN b"].map(|made_by| Known {
        origin: Origin::Image,
        digest: None,
        made_by: made_by.to_owned(),
        created: None,
        shared_with: Vec::new(),
    });
    let image = "sha256:".to_owned() + &"0".repeat(64);
    let image = image.parse().expect("a digest");
    Stack { title: "image".to_owned(), image, container: None, known: known.into(), account }
}

fn press(browser: &mut Browser<'_>, keys: &str) {
    for letter in keys.chars() {
        let code = match letter {
            '\r' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            letter => KeyCode::Char(letter),
        };
        browser.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
}

/// What is listed, the row under the cursor in brackets.
fn rows(browser: &mut Browser<'_>) -> String {
    let tree = browser.tree();
    let each = tree.rows.iter().enumerate().map(|(at, row)| {
        let name = shown(&tree.items[row.item].name);
        let name = format!("{}{name}", " ".repeat(row.depth));
        if at == tree.cursor { format!("[{name}]") } else { name }
    });
    each.collect::<Vec<_>>().join("|")
}

#[test]
fn keys_open_close_filter_and_search() {
    let stack = stack();
    let mut browser = Browser::new(&stack);
    assert_eq!(rows(&mut browser), "[a]|b|z");
    let cases = [
        ("\tl", "[a]| deep|b|z"),
        ("ll", "a|[ deep]|  f|  g|b|z"),
        ("G", "a| deep|  f|  g|b|[z]"),
        ("gh", "[a]|b|z"),
        ("+", "[a]| deep|  f|  g|b|z"),
        ("jjjj", "a| deep|  f|  g|[b]|z"),
        // By size, then by waste; the cursor stays where it was.
        ("s", "a| deep|  g|  f|z|[b]"),
        ("s", "[b]|a| deep|  f|  g|z"),
        ("s", "a| deep|  f|  g|[b]|z"),
        // Only what is wasted, what changed, all.
        ("w", "[b]"),
        ("c", "a| deep|  g|[b]"),
        ("c-", "a|[b]|z"),
        // A search opens the way; the next is the next; from the last to the first.
        ("/f", "a| deep|[  f]|  g|b|z"),
        ("\r/deep/\r", "a| deep|[  f]|  g|b|z"),
        ("n", "a| deep|  f|[  g]|b|z"),
        ("n", "a| deep|[  f]|  g|b|z"),
        ("N", "a| deep|  f|[  g]|b|z"),
        ("/Z", "a| deep|  f|  g|b|[z]"),
        // Given up: back to where it began.
        ("\x1b", "a| deep|  f|[  g]|b|z"),
        ("hh", "a|[ deep]|b|z"),
        ("hh", "[a]|b|z"),
    ];
    for (keys, want) in cases {
        press(&mut browser, keys);
        assert_eq!(rows(&mut browser), want, "after {keys:?}");
    }
    press(&mut browser, "/none");
    assert!(browser.said.contains("\"none\""), "{}", browser.said);
    press(&mut browser, "\rq");
    assert!(browser.ended);
}

#[test]
fn each_layer_has_its_own_tree_and_the_cursor_of_each_is_kept() {
    let stack = stack();
    let mut browser = Browser::new(&stack);
    press(&mut browser, "\tG\tj");
    assert_eq!(
        (browser.layer_of(browser.chosen), rows(&mut browser)),
        (Some(1), "[a]|b".to_owned())
    );
    press(&mut browser, "jjj");
    assert_eq!(
        (browser.layer_of(browser.chosen), rows(&mut browser)),
        (Some(0), "[a]|b|z".to_owned())
    );
    press(&mut browser, "m");
    assert_eq!(
        (browser.layer_of(browser.chosen), rows(&mut browser)),
        (None, "a|b|[z]".to_owned())
    );
}

fn picture(browser: &mut Browser<'_>, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| draw(frame, browser)).expect("a picture");
    terminal.backend().to_string()
}

#[test]
fn it_is_drawn_in_any_size() {
    let stack = stack();
    let mut browser = Browser::new(&stack);
    press(&mut browser, "\t+?");
    for width in [1, 2, 10, 23, 24, 40, 79, 80, 200] {
        for height in [1, 2, 5, 6, 7, 20, 100] {
            picture(&mut browser, width, height);
        }
    }
    press(&mut browser, "?");
    let drawn = picture(&mut browser, 100, 24);
    for part in ["Layers", "Files of all layers", "RUN b", "b (deleted by 2)", "1000 B", "▾ deep/"]
    {
        assert!(drawn.contains(part), "{part:?} is not in\n{drawn}");
    }
    let narrow = picture(&mut browser, 50, 12);
    assert!(!narrow.contains("RUN b") && narrow.contains("deep/"), "{narrow}");
    press(&mut browser, "\t");
    let narrow = picture(&mut browser, 50, 12);
    assert!(narrow.contains("RUN b") && !narrow.contains("deep/"), "{narrow}");
}

#[test]
fn the_cursor_stays_on_the_screen() {
    let stack = stack();
    let mut browser = Browser::new(&stack);
    press(&mut browser, "\t+G");
    let drawn = picture(&mut browser, 60, 7);
    assert!(drawn.contains(" z") && !drawn.contains("deep"), "{drawn}");
    press(&mut browser, "g");
    let drawn = picture(&mut browser, 60, 7);
    assert!(drawn.contains("a/") && !drawn.contains(" z"), "{drawn}");
}
