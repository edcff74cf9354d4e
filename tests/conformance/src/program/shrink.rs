//! Dropping what a difference does not need.

use super::{Item, Program};

/// The smallest program found that still `differs`, made from one that does.
pub fn shrink(program: &Program, mut differs: impl FnMut(&Program) -> bool) -> Program {
    let mut best = program.clone();
    loop {
        let before = count(&best);
        let mut chunk = before.next_power_of_two() / 2;
        while chunk > 0 {
            let mut at = 0;
            while at < count(&best) {
                let mut smaller = best.clone();
                remove(&mut smaller, at, chunk);
                if count(&smaller) < count(&best) && differs(&smaller) {
                    best = smaller;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
        unwrap_containers(&mut best, &mut differs);
        plainer_functions(&mut best, &mut differs);
        if count(&best) >= before {
            return best;
        }
    }
}

fn lists(p: &mut Program) -> impl Iterator<Item = &mut Vec<Item>> {
    p.segments.iter_mut().chain(p.functions.iter_mut().map(|f| &mut f.body))
}

fn bodies(item: &Item) -> Vec<&Vec<Item>> {
    match item {
        Item::If { body, .. }
        | Item::Loop { body, .. }
        | Item::Recurse { body, .. }
        | Item::SetJump { body }
        | Item::OtherStack { body, .. }
        | Item::Break { body } => vec![body],
        Item::Switch { arms, .. } => arms.iter().collect(),
        _ => Vec::new(),
    }
}

fn bodies_mut(item: &mut Item) -> Vec<&mut Vec<Item>> {
    match item {
        Item::If { body, .. }
        | Item::Loop { body, .. }
        | Item::Recurse { body, .. }
        | Item::SetJump { body }
        | Item::OtherStack { body, .. }
        | Item::Break { body } => vec![body],
        Item::Switch { arms, .. } => arms.iter_mut().collect(),
        _ => Vec::new(),
    }
}

fn count_in(items: &[Item]) -> usize {
    items.iter().map(|i| 1 + bodies(i).into_iter().map(|b| count_in(b)).sum::<usize>()).sum()
}

fn count(p: &Program) -> usize {
    let lists = p.segments.iter().chain(p.functions.iter().map(|f| &f.body));
    lists.map(|l| count_in(l)).sum()
}

/// Remove `n` items from number `from` on, with what they contain.
fn remove(p: &mut Program, from: usize, n: usize) {
    let mut number = 0;
    for list in lists(p) {
        remove_in(list, &mut number, from, n);
    }
}

fn remove_in(items: &mut Vec<Item>, number: &mut usize, from: usize, n: usize) {
    items.retain_mut(|item| {
        let own = *number;
        *number += 1;
        if own >= from && own < from + n {
            *number += bodies(item).into_iter().map(|b| count_in(b)).sum::<usize>();
            return false;
        }
        for body in bodies_mut(item) {
            remove_in(body, number, from, n);
        }
        true
    });
}

/// Try to put what a container holds in its place.
fn unwrap_containers(best: &mut Program, differs: &mut impl FnMut(&Program) -> bool) {
    let mut at = 0;
    while at < count(best) {
        let mut smaller = best.clone();
        let mut number = 0;
        for list in lists(&mut smaller) {
            unwrap_in(list, &mut number, at);
        }
        if count(&smaller) < count(best) && differs(&smaller) {
            *best = smaller;
        } else {
            at += 1;
        }
    }
}

fn unwrap_in(items: &mut Vec<Item>, number: &mut usize, at: usize) {
    let mut out = Vec::new();
    for mut item in items.drain(..) {
        let own = *number;
        *number += 1;
        if own == at && !bodies(&item).is_empty() {
            for body in bodies_mut(&mut item) {
                *number += count_in(body);
                out.append(body);
            }
            continue;
        }
        for body in bodies_mut(&mut item) {
            unwrap_in(body, number, at);
        }
        out.push(item);
    }
    *items = out;
}

/// Try functions without padding, arguments and other returns.
fn plainer_functions(best: &mut Program, differs: &mut impl FnMut(&Program) -> bool) {
    let changes: [fn(&mut Program, usize); 3] = [
        |p, n| p.functions[n].padding = 0,
        |p, n| p.functions[n].arguments = 0,
        |p, n| p.functions[n].retargets = false,
    ];
    for n in 0..best.functions.len() {
        for change in changes {
            let mut p = best.clone();
            change(&mut p, n);
            if differs(&p) {
                *best = p;
            }
        }
    }
}
