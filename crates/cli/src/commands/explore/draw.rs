//! The picture: layers on the left, files on the right, one of them where there is no room for both.

use layer::account::{self, Change, Item};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::browser::{Browser, Filter, Focus, Order, Row, Tree};
use super::names::{shown, shown_path};
use super::stack::Known;
use crate::commands::report::bytes;
use crate::context::short;

/// Columns below which one half is shown at a time.
const BOTH: u16 = 80;
/// What needs no less to be of any use.
const LEAST: (u16, u16) = (24, 6);

const HELP: &str = "\
 arrows, h j k l   move; left closes, right opens
 Enter, Space      open or close a directory
 Tab               from layers to files and back
 PgUp PgDn g G     a page; the first, the last
 + -               open all, close all
 / n N             search; the next, the one before
 c w a             only changed, only wasted, all
 s                 order: name, size, wasted
 m                 all layers merged
 q, Ctrl-C         end

 A added   C changed   D deleted
 h hidden by a layer above   o opaque: hides what
   layers below have in the directory
 HIDES  bytes of layers below that are hidden here
 WASTED bytes that layers above hide";

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, browser: &mut Browser<'_>) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        frame.render_widget(Paragraph::new("too small (q ends)"), area);
        return;
    }
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
            .areas(area);
    frame.render_widget(Paragraph::new(heading(browser)).style(bold()), head);
    if area.width >= BOTH {
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(42), Constraint::Percentage(58)])
                .areas(middle);
        layers(frame, browser, left);
        files(frame, browser, right);
    } else if browser.focus == Focus::Layers {
        layers(frame, browser, middle);
    } else {
        files(frame, browser, middle);
    }
    let line = footing(browser, foot.width.into());
    frame.render_widget(Paragraph::new(line), foot);
    if browser.help {
        help(frame, middle);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Colours are left out where the user wants none (no-color.org).
fn coloured(color: Color) -> Style {
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        Style::new()
    } else {
        Style::new().fg(color)
    }
}

fn heading(browser: &Browser<'_>) -> String {
    let stack = browser.stack;
    let merged = &stack.account.merged[0];
    let all = stack.bytes();
    let percent = (merged.wasted * 100).checked_div(all).unwrap_or(0);
    format!(
        "{}: {} layers, {}; shown {}, wasted {} ({percent} %)",
        stack.title,
        stack.known.len(),
        bytes(all),
        bytes(merged.bytes),
        bytes(merged.wasted),
    )
}

fn block(title: String, focused: bool) -> Block<'static> {
    let block = Block::bordered().title(title);
    if focused { block.border_style(coloured(Color::Cyan)).title_style(bold()) } else { block }
}

fn selected(focused: bool) -> Style {
    if focused { Style::new().add_modifier(Modifier::REVERSED) } else { bold() }
}

/// The first row to draw, so that the cursor is among `room`.
fn scroll(top: usize, cursor: usize, room: usize, rows: usize) -> usize {
    let top = top.min(rows.saturating_sub(room));
    top.min(cursor).max((cursor + 1).saturating_sub(room))
}

fn layers(frame: &mut Frame<'_>, browser: &mut Browser<'_>, area: Rect) {
    let details = if area.height >= 18 { 11 } else { 0 };
    let [list, below] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(details)]).areas(area);
    let focused = browser.focus == Focus::Layers;
    let outer = block(" Layers ".to_owned(), focused);
    let inner = outer.inner(list);
    frame.render_widget(outer, list);
    let room = usize::from(inner.height.saturating_sub(1));
    browser.layers_top = scroll(browser.layers_top, browser.chosen, room, browser.choices());
    if focused {
        browser.page = room.max(1);
    }
    let mut lines = vec![Line::styled("  #       SIZE     WASTED  MADE BY", dim())];
    for choice in (browser.layers_top..browser.choices()).take(room) {
        let line = match browser.layer_of(choice) {
            None => {
                let root = &browser.stack.account.merged[0];
                format!(
                    "  * {:>10} {:>10}  all layers merged",
                    bytes(root.bytes),
                    bytes(root.wasted)
                )
            }
            Some(layer) => {
                let (known, root) =
                    (&browser.stack.known[layer], &browser.stack.account.layers[layer].items[0]);
                let made_by = command(known);
                let (size, wasted) = (bytes(root.bytes), bytes(root.wasted));
                let shared = if known.shared_with.is_empty() { ' ' } else { '=' };
                format!("{:>3}{shared}{size:>10} {wasted:>10}  {made_by}", layer + 1)
            }
        };
        let style = if choice == browser.chosen { selected(focused) } else { Style::new() };
        lines.push(Line::styled(line, style));
    }
    frame.render_widget(Paragraph::new(lines), inner);
    if details > 0 {
        let outer = Block::bordered().title(" About it ");
        let text = Paragraph::new(about(browser)).wrap(Wrap { trim: true }).block(outer);
        frame.render_widget(text, below);
    }
}

/// What made the layer, without what every command begins with.
fn command(known: &Known) -> String {
    let text = known.made_by.trim_start_matches("/bin/sh -c ").trim_start_matches("#(nop) ");
    let text = if text.is_empty() { "(no history)" } else { text };
    shown(text.as_ref())
}

fn about(browser: &Browser<'_>) -> Vec<Line<'static>> {
    let stack = browser.stack;
    let Some(layer) = browser.layer_of(browser.chosen) else {
        let root = &stack.account.merged[0];
        return vec![
            Line::raw(format!("shown    {} names, {}", root.names - 1, bytes(root.bytes))),
            Line::raw(format!("wasted   {} of {}", bytes(root.wasted), bytes(stack.bytes()))),
            Line::raw(format!("image    {}", short(&stack.image))),
            Line::raw("= beside a layer: other images have it too"),
        ];
    };
    let (known, account) = (&stack.known[layer], &stack.account.layers[layer]);
    let count = |what: &str, count: account::Count| {
        Line::raw(format!("{what:<8} {} names, {}", count.names, bytes(count.bytes)))
    };
    let mut lines = vec![
        count("added", account.added),
        count("changed", account.changed),
        count("deleted", account.deleted),
        count("hides", account.hides),
        count("wasted", account.wasted),
    ];
    if !known.shared_with.is_empty() {
        lines.push(Line::raw(format!("also in  {}", known.shared_with.join(" "))));
    }
    if let Some(digest) = &known.digest {
        let at = known.created.as_deref().and_then(|at| at.get(..10)).unwrap_or("");
        lines.push(Line::raw(format!("layer    {} {at}", short(digest))));
    }
    lines.push(Line::raw(format!("by       {}", command(known))));
    lines
}

fn files(frame: &mut Frame<'_>, browser: &mut Browser<'_>, area: Rect) {
    let focused = browser.focus == Focus::Files;
    let of = match browser.layer_of(browser.chosen) {
        None => "all layers".to_owned(),
        Some(layer) => format!("layer {}", layer + 1),
    };
    let only = match browser.filter {
        Filter::All => "",
        Filter::Changed => ", changed only",
        Filter::Wasted => ", wasted only",
    };
    let by = match browser.order {
        Order::Name => "",
        Order::Size => ", by size",
        Order::Wasted => ", by waste",
    };
    let outer = block(format!(" Files of {of}{only}{by} "), focused);
    let inner = outer.inner(area);
    frame.render_widget(outer, area);
    let room = usize::from(inner.height.saturating_sub(1));
    if focused {
        browser.page = room.max(1);
    }
    let merged = browser.chosen == 0;
    let wide = inner.width >= 50;
    let tree = browser.tree();
    tree.top = scroll(tree.top, tree.cursor, room, tree.rows.len());
    let middle = match (wide, merged) {
        (false, _) => "",
        (_, true) => "  LAYER",
        (_, false) => "      HIDES",
    };
    let mut lines = vec![Line::styled(format!("         SIZE{middle}     WASTED  NAME"), dim())];
    if tree.rows.is_empty() {
        lines.push(Line::raw("   nothing (a shows all)"));
    }
    for at in (tree.top..tree.rows.len()).take(room) {
        let style = if at == tree.cursor { selected(focused) } else { Style::new() };
        let row = tree.rows[at];
        lines.push(row_line(tree, row, merged, wide, inner.width.into()).patch_style(style));
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn row_line(tree: &Tree<'_>, row: Row, merged: bool, wide: bool, width: usize) -> Line<'static> {
    let item = &tree.items[row.item];
    let (letter, color) = match item.change {
        Change::Kept => (' ', Color::Reset),
        Change::Added => ('A', Color::Green),
        Change::Changed => ('C', Color::Yellow),
        Change::Deleted | Change::DeletedNothing => ('D', Color::Red),
    };
    let hidden = item.hidden_by.is_some();
    let second = match item.what {
        _ if hidden => 'h',
        layer::tree::What::Dir { opaque: true } => 'o',
        _ => ' ',
    };
    let some = |count: u64| if count == 0 { "-".to_owned() } else { bytes(count) };
    let middle = match (wide, merged) {
        (false, _) => String::new(),
        (_, true) => format!(" {:>6}", item.layer + 1),
        (_, false) => format!(" {:>10}", some(item.hides)),
    };
    let figures =
        format!("{letter}{second} {:>10}{middle} {:>10}  ", some(item.bytes), some(item.wasted));
    let sign = match (item.children.is_empty(), tree.is_open(row.item)) {
        (true, _) => "  ",
        (false, false) => "▸ ",
        (false, true) => "▾ ",
    };
    // Names that are deep stay to be seen.
    let depth = (row.depth * 2).min(width / 3);
    let name = format!("{:depth$}{sign}{}{}", "", shown(&item.name), after(item, merged));
    let style = if hidden { dim() } else { Style::new() };
    Line::from(vec![Span::styled(figures, coloured(color)), Span::styled(name, style)])
}

/// What is said behind a name.
fn after(item: &Item, merged: bool) -> String {
    let mut text = if item.what.is_dir() { "/".to_owned() } else { String::new() };
    match (item.change, item.hidden_by) {
        (Change::DeletedNothing, _) => text += " (deletes nothing)",
        (Change::Deleted, Some(by)) if merged => text += &format!(" (deleted by {})", by + 1),
        (_, Some(by)) => text += &format!(" (hidden by {})", by + 1),
        _ if item.linked => text += " (one more name)",
        _ => {}
    }
    text
}

fn footing(browser: &mut Browser<'_>, width: usize) -> Line<'static> {
    if browser.typing.is_some() {
        let said =
            if browser.said.is_empty() { String::new() } else { format!("  {}", browser.said) };
        return Line::raw(format!("/{}_{said}", browser.pattern));
    }
    if !browser.said.is_empty() {
        return Line::raw(browser.said.clone());
    }
    let keys = "? help  q ends";
    let tree = browser.tree();
    let Some(row) = tree.row().filter(|_| browser.focus == Focus::Files) else {
        return Line::styled(format!("Tab files  / search  c changed  w wasted  {keys}"), dim());
    };
    let item = &browser.tree().items[row.item];
    let about = format!(
        "{:04o} {}:{}  ",
        item.attributes.mode & 0o7777,
        item.attributes.owner.0,
        item.attributes.owner.1
    );
    let path = shown_path(&account::path(browser.tree().items, row.item));
    // The end of a path tells more than its beginning.
    let room = width.saturating_sub(about.len() + keys.len() + 3).max(8);
    let letters = path.chars().count();
    let path = if letters > room {
        format!("…{}", path.chars().skip(letters + 1 - room).collect::<String>())
    } else {
        path
    };
    Line::from(vec![Span::raw(format!("{about}{path}  ")), Span::styled(keys, dim())])
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX).saturating_add(2);
    let (width, height) = (56.min(area.width), lines.min(area.height));
    let at = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, at);
    let outer = Block::bordered().title(" Help: any key goes back ");
    frame.render_widget(Paragraph::new(HELP).block(outer), at);
}
