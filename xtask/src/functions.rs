//! Limits on functions and traits, read from the syntax tree.

use anyhow::Result;
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::Visit;

use crate::report::Report;
use crate::sources;

/// Longest function, in lines.
const MAX_FUNCTION_LINES: usize = 90;
/// Most methods of a trait.
const MAX_TRAIT_METHODS: usize = 15;

/// Tables of test cases and measured loops may be as long as they are.
const OUTSIDE: [&str; 4] = ["/tests/", "/tests.rs", "/benches/", "/generated/"];

/// Functions that may be longer, each with its reason.
const LONG_FUNCTIONS: [(&str, &str, &str); 0] = [];

/// Check every Rust file outside tests.
pub fn check(report: &mut Report) -> Result<()> {
    let mut findings = Vec::new();
    for (path, text) in sources::files()? {
        let judged = path.ends_with(".rs") && !OUTSIDE.iter().any(|o| path.contains(o));
        if !judged {
            continue;
        }
        match syn::parse_file(&text) {
            Ok(file) => findings.extend(judge(&path, &file)),
            Err(e) => findings.push(format!("{path}:{} does not parse: {e}", e.span().start().line)),
        }
    }
    report.add("functions", findings);
    Ok(())
}

struct Visitor<'a> {
    path: &'a str,
    findings: Vec<String>,
}

fn judge(path: &str, file: &syn::File) -> Vec<String> {
    let mut visitor = Visitor { path, findings: Vec::new() };
    visitor.visit_file(file);
    visitor.findings
}

impl Visitor<'_> {
    fn function(&mut self, name: &syn::Ident, body: Span) {
        let lines = body.end().line.saturating_sub(body.start().line) + 1;
        let name = name.to_string();
        let excepted = LONG_FUNCTIONS.iter().any(|e| (e.0, e.1) == (self.path, name.as_str()));
        if lines > MAX_FUNCTION_LINES && !excepted {
            let (path, line) = (self.path, body.start().line);
            self.findings.push(format!(
                "{path}:{line} function {name} has {lines} lines, at most {MAX_FUNCTION_LINES} are allowed; split it"
            ));
        }
    }
}

/// `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    let mentions_test = |a: &syn::Attribute| match &a.meta {
        syn::Meta::List(l) => l.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|w| w == "test"),
        _ => false,
    };
    attributes.iter().any(|a| a.path().is_ident("cfg") && mentions_test(a))
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, item.block.span());
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, item.block.span());
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        let methods = item.items.iter().filter(|i| matches!(i, syn::TraitItem::Fn(_))).count();
        if methods > MAX_TRAIT_METHODS {
            let (path, name) = (self.path, &item.ident);
            self.findings.push(format!(
                "{path}: trait {name} has {methods} methods, at most {MAX_TRAIT_METHODS} are allowed; split it"
            ));
        }
        syn::visit::visit_item_trait(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> usize {
        judge("a.rs", &syn::parse_file(text).unwrap()).len()
    }

    #[test]
    fn long_functions_and_wide_traits_are_found_outside_tests() {
        let body = "    let _ = 1;\n".repeat(MAX_FUNCTION_LINES - 2);
        assert_eq!(findings(&format!("fn f() {{\n{body}}}")), 0);
        assert_eq!(findings(&format!("fn f() {{\n{body}\n}}")), 1);
        assert_eq!(findings(&format!("impl A {{ fn f() {{\n{body}\n}} }}")), 1);
        assert_eq!(findings(&format!("#[cfg(test)]\nmod tests {{ fn f() {{\n{body}\n}} }}")), 0);
        let methods = |n: usize| (0..n).map(|i| format!("fn m{i}();")).collect::<String>();
        assert_eq!(findings(&format!("trait T {{ {} }}", methods(MAX_TRAIT_METHODS))), 0);
        assert_eq!(findings(&format!("trait T {{ {} }}", methods(MAX_TRAIT_METHODS + 1))), 1);
    }
}
