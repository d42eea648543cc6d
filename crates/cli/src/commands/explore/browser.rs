//! What is looked at, and what each key does to it. Nothing here knows of a terminal.

use std::collections::HashSet;

use layer::account::{self, Change, Item};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::names::{shown, shown_path};
use super::stack::Stack;

/// Which half the keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    Layers,
    Files,
}

/// Which names are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    All,
    /// What a layer added, changed or deleted.
    Changed,
    /// What has bytes that layers above hide.
    Wasted,
}

/// In which order a directory's names are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Name,
    Size,
    Wasted,
}

/// A line of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub item: usize,
    pub depth: usize,
}

/// The tree of one layer, or of all.
#[derive(Debug)]
pub struct Tree<'s> {
    pub items: &'s [Item],
    /// Directories whose content is listed.
    open: HashSet<usize>,
    /// Items that the filter lets through, or that have such in them.
    passes: Vec<bool>,
    pub rows: Vec<Row>,
    pub cursor: usize,
    /// The first row that is drawn.
    pub top: usize,
}

/// All that is looked at.
#[derive(Debug)]
pub struct Browser<'s> {
    pub stack: &'s Stack,
    pub focus: Focus,
    /// 0 for the merged tree, then the layers, uppermost first.
    pub chosen: usize,
    /// The first row of the list of layers that is drawn.
    pub layers_top: usize,
    trees: Vec<Option<Tree<'s>>>,
    pub filter: Filter,
    pub order: Order,
    /// What is searched for, and where the cursor was before, while that is typed.
    pub typing: Option<usize>,
    pub pattern: String,
    pub help: bool,
    /// What the last key came to, where that is not to be seen.
    pub said: String,
    /// Rows that the tree has room for, as it was drawn last.
    pub page: usize,
    pub ended: bool,
}

impl<'s> Browser<'s> {
    pub fn new(stack: &'s Stack) -> Self {
        let mut browser = Self {
            stack,
            focus: Focus::Layers,
            chosen: 0,
            layers_top: 0,
            trees: (0..=stack.account.layers.len()).map(|_| None).collect(),
            filter: Filter::All,
            order: Order::Name,
            typing: None,
            pattern: String::new(),
            help: false,
            said: String::new(),
            page: 1,
            ended: false,
        };
        browser.choose(0);
        browser
    }

    /// How many rows the list of layers has.
    pub fn choices(&self) -> usize {
        self.trees.len()
    }

    /// The layer of a row of that list, the lowest being 0; none for the merged tree.
    pub fn layer_of(&self, choice: usize) -> Option<usize> {
        (choice > 0).then(|| self.trees.len() - 1 - choice)
    }

    /// The tree that is looked at.
    pub fn tree(&mut self) -> &mut Tree<'s> {
        let items = match self.layer_of(self.chosen) {
            Some(layer) => &self.stack.account.layers[layer].items,
            None => &self.stack.account.merged,
        };
        let (filter, order) = (self.filter, self.order);
        self.trees[self.chosen].get_or_insert_with(|| Tree::new(items, filter, order))
    }

    fn choose(&mut self, choice: usize) {
        self.chosen = choice.min(self.trees.len() - 1);
        let (filter, order) = (self.filter, self.order);
        self.tree().lay_out(filter, order);
    }

    fn set(&mut self, filter: Filter, order: Order) {
        (self.filter, self.order) = (filter, order);
        self.tree().lay_out(filter, order);
    }

    /// Does what a key asks for.
    pub fn key(&mut self, key: KeyEvent) {
        self.said.clear();
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (key.code, control) {
            (KeyCode::Char('c'), true) => self.ended = true,
            _ if self.help => self.help = false,
            _ if self.typing.is_some() => self.type_key(key.code, control),
            (KeyCode::Char('q'), false) => self.ended = true,
            (KeyCode::Char('?'), _) => self.help = true,
            (KeyCode::Tab | KeyCode::BackTab, _) => {
                self.focus = match self.focus {
                    Focus::Layers => Focus::Files,
                    Focus::Files => Focus::Layers,
                };
            }
            (KeyCode::Char('/'), _) => {
                self.focus = Focus::Files;
                self.pattern.clear();
                self.typing = Some(self.tree().cursor);
            }
            (KeyCode::Char('n'), false) => self.next(1),
            (KeyCode::Char('N'), _) => self.next(-1),
            (KeyCode::Char('a') | KeyCode::Esc, _) => self.set(Filter::All, self.order),
            (KeyCode::Char('c'), false) => self.toggle(Filter::Changed),
            (KeyCode::Char('w'), false) => self.toggle(Filter::Wasted),
            (KeyCode::Char('s'), _) => {
                let order = match self.order {
                    Order::Name => Order::Size,
                    Order::Size => Order::Wasted,
                    Order::Wasted => Order::Name,
                };
                self.set(self.filter, order);
            }
            (KeyCode::Char('m'), _) => self.choose(0),
            (code, _) if self.focus == Focus::Layers => self.layers_key(code),
            (code, _) => self.files_key(code, control),
        }
    }

    fn toggle(&mut self, filter: Filter) {
        self.set(if self.filter == filter { Filter::All } else { filter }, self.order);
    }

    fn layers_key(&mut self, code: KeyCode) {
        let last = self.trees.len() - 1;
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.choose(self.chosen.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(self.chosen + 1),
            KeyCode::PageUp => self.choose(self.chosen.saturating_sub(self.page)),
            KeyCode::PageDown => self.choose(self.chosen + self.page),
            KeyCode::Home | KeyCode::Char('g') => self.choose(0),
            KeyCode::End | KeyCode::Char('G') => self.choose(last),
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => self.focus = Focus::Files,
            _ => {}
        }
    }

    fn files_key(&mut self, code: KeyCode, control: bool) {
        let (filter, order, page) = (self.filter, self.order, self.page);
        let tree = self.tree();
        let last = tree.rows.len().saturating_sub(1);
        match (code, control) {
            (KeyCode::Up | KeyCode::Char('k'), _) => tree.cursor = tree.cursor.saturating_sub(1),
            (KeyCode::Down | KeyCode::Char('j'), _) => tree.cursor = last.min(tree.cursor + 1),
            (KeyCode::PageUp, _) | (KeyCode::Char('u' | 'b'), true) => {
                tree.cursor = tree.cursor.saturating_sub(page);
            }
            (KeyCode::PageDown, _) | (KeyCode::Char('d' | 'f'), true) => {
                tree.cursor = last.min(tree.cursor + page);
            }
            (KeyCode::Home | KeyCode::Char('g'), _) => tree.cursor = 0,
            (KeyCode::End | KeyCode::Char('G'), _) => tree.cursor = last,
            (KeyCode::Enter | KeyCode::Char(' '), _) => {
                if let Some(Row { item, .. }) = tree.row() {
                    if !tree.open.remove(&item) {
                        tree.open.insert(item);
                    }
                    tree.lay_out(filter, order);
                }
            }
            (KeyCode::Right | KeyCode::Char('l'), _) => {
                if let Some(Row { item, .. }) = tree.row()
                    && !tree.items[item].children.is_empty()
                {
                    if tree.open.insert(item) {
                        tree.lay_out(filter, order);
                    } else {
                        tree.cursor = last.min(tree.cursor + 1);
                    }
                }
            }
            (KeyCode::Left | KeyCode::Char('h'), _) => {
                let Some(Row { item, depth }) = tree.row() else {
                    self.focus = Focus::Layers;
                    return;
                };
                if tree.open.remove(&item) && !tree.items[item].children.is_empty() {
                    tree.lay_out(filter, order);
                } else if depth > 0 {
                    tree.go_to(tree.items[item].parent);
                } else {
                    self.focus = Focus::Layers;
                }
            }
            (KeyCode::Char('+' | '*'), _) => {
                tree.open = (0..tree.items.len()).collect();
                tree.lay_out(filter, order);
            }
            (KeyCode::Char('-'), _) => {
                tree.open.clear();
                tree.lay_out(filter, order);
            }
            _ => {}
        }
    }

    fn type_key(&mut self, code: KeyCode, control: bool) {
        let Some(before) = self.typing else { return };
        match (code, control) {
            (KeyCode::Enter, _) => self.typing = None,
            (KeyCode::Esc, _) => {
                self.typing = None;
                self.pattern.clear();
                let tree = self.tree();
                tree.cursor = before.min(tree.rows.len().saturating_sub(1));
                return;
            }
            (KeyCode::Backspace, _) => {
                self.pattern.pop();
            }
            (KeyCode::Char('u'), true) => self.pattern.clear(),
            (KeyCode::Char(letter), false) => self.pattern.push(letter),
            _ => return,
        }
        self.next(0);
    }

    /// Goes to the next name with the pattern in it, forwards or backwards, or for 0 stays where the cursor is on one;
    /// from the last to the first.
    fn next(&mut self, way: isize) {
        if self.pattern.is_empty() {
            return;
        }
        let pattern = self.pattern.to_lowercase();
        let (filter, order) = (self.filter, self.order);
        let tree = self.tree();
        let mut all = tree.in_order(order, |_| true);
        let here = tree.row().map_or(0, |row| row.item);
        let at = all.iter().position(|row| row.item == here).unwrap_or(0);
        if way < 0 {
            all.rotate_left(at);
            all.reverse();
        } else {
            let begin = (at + way.unsigned_abs()) % all.len().max(1);
            all.rotate_left(begin);
        }
        let whole = pattern.contains('/');
        let found = all.iter().find(|row| {
            let text = if whole {
                shown_path(&account::path(tree.items, row.item))
            } else {
                shown(&tree.items[row.item].name)
            };
            text.to_lowercase().contains(&pattern)
        });
        match found.map(|row| row.item) {
            Some(item) => {
                let mut above = tree.items[item].parent;
                while above != 0 {
                    tree.open.insert(above);
                    above = tree.items[above].parent;
                }
                tree.lay_out(filter, order);
                tree.go_to(item);
            }
            None if filter == Filter::All => {
                self.said = format!("no name has {:?} in it", self.pattern);
            }
            None => self.said = format!("no name listed has {:?} in it; a lists all", self.pattern),
        }
    }
}

impl<'s> Tree<'s> {
    fn new(items: &'s [Item], filter: Filter, order: Order) -> Self {
        let (open, passes, rows) = (HashSet::new(), Vec::new(), Vec::new());
        let mut tree = Self { items, open, passes, rows, cursor: 0, top: 0 };
        tree.lay_out(filter, order);
        tree
    }

    /// The row that the cursor is on.
    pub fn row(&self) -> Option<Row> {
        self.rows.get(self.cursor).copied()
    }

    /// Whether a directory's content is listed.
    pub fn is_open(&self, item: usize) -> bool {
        self.open.contains(&item)
    }

    fn go_to(&mut self, item: usize) {
        if let Some(row) = self.rows.iter().position(|row| row.item == item) {
            self.cursor = row;
        }
    }

    /// Lists what is open and passes; the cursor stays on what it was on, or the nearest directory above it.
    fn lay_out(&mut self, filter: Filter, order: Order) {
        let mut here = self.row().map(|row| row.item);
        self.passes = self.items.iter().map(|item| passes(item, filter)).collect();
        for item in (1..self.items.len()).rev() {
            if self.passes[item] {
                self.passes[self.items[item].parent] = true;
            }
        }
        self.rows = self.in_order(order, |item| self.open.contains(&item));
        self.cursor = self.cursor.min(self.rows.len().saturating_sub(1));
        while let Some(item) = here.filter(|item| *item != 0) {
            if let Some(row) = self.rows.iter().position(|row| row.item == item) {
                self.cursor = row;
                break;
            }
            here = Some(self.items[item].parent);
        }
    }

    /// What passes, in the order in which it is listed, inside of directories that are `entered`.
    fn in_order(&self, order: Order, entered: impl Fn(usize) -> bool) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut waiting = Vec::new();
        let push = |waiting: &mut Vec<Row>, directory: usize, depth: usize| {
            let children = self.items[directory].children.iter().copied();
            let mut children: Vec<usize> = children.filter(|child| self.passes[*child]).collect();
            match order {
                Order::Name => {}
                Order::Size => children.sort_by_key(|c| std::cmp::Reverse(self.items[*c].bytes)),
                Order::Wasted => children.sort_by_key(|c| std::cmp::Reverse(self.items[*c].wasted)),
            }
            waiting.extend(children.into_iter().rev().map(|item| Row { item, depth }));
        };
        push(&mut waiting, 0, 0);
        while let Some(row) = waiting.pop() {
            rows.push(row);
            if entered(row.item) {
                push(&mut waiting, row.item, row.depth + 1);
            }
        }
        rows
    }
}

fn passes(item: &Item, filter: Filter) -> bool {
    match filter {
        Filter::All => true,
        Filter::Changed => item.change != Change::Kept,
        Filter::Wasted => item.wasted > 0,
    }
}

#[cfg(test)]
mod tests;
