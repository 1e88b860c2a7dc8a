//! Reads one source file as far as the rules about modules need it: the modules that it declares, what it imports, the
//! qualified paths in its code, and the names that it defines. Code that is compiled for tests alone is left out.
//!
//! The file is read as tokens, so that every form of `use` and every path inside a macro is seen, and that comments and
//! strings are not.

use std::collections::BTreeSet;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// One module: a file, or `mod name { … }` inside one.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// The modules that have files of their own.
    pub(crate) files: Vec<FileModule>,
    /// The modules that are written out inside this one.
    pub(crate) inline: Vec<(String, Module)>,
    /// One entry for each name that a `use` brings into scope.
    pub(crate) imports: Vec<Import>,
    /// Qualified paths in code (`crate::a::b`, `a::b`), without generic arguments.
    pub(crate) paths: Vec<Vec<String>>,
    /// Names of types, functions, constants and macros.
    pub(crate) definitions: BTreeSet<String>,
}

/// `mod name;`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileModule {
    pub(crate) name: String,
    /// The file that a `#[path = "…"]` names, from the folder of the declaring file.
    pub(crate) path: Option<String>,
}

/// A name that a `use` brings into scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The path, written out: of `use a::{b, c as d}` these are `a::b` and `a::c`.
    pub(crate) path: Vec<String>,
    /// The name in scope; `*` for a glob.
    pub(crate) name: String,
}

impl Module {
    /// Reads a file.
    pub(crate) fn read(text: &str) -> Self {
        let mut module = Self::default();
        let tokens = TokenStream::from_str(text).expect("the compiler has accepted it");
        module.scan(tokens, true);
        module
    }

    /// Reads tokens of this module. `items`: they are its items, and not part of one.
    fn scan(&mut self, tokens: TokenStream, items: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        // Of the `#[path]` in front of a module.
        let mut path = None;
        while at < tokens.len() {
            let rest = &tokens[at..];
            let taken = match &rest[0] {
                TokenTree::Punct(hash) if hash.as_char() == '#' => {
                    path = group(rest.get(1), Delimiter::Bracket).and_then(path_of).or(path);
                    skip_test_code(rest)
                }
                // `pub(in crate::a)` names a module and imports nothing.
                TokenTree::Ident(word) if word == "pub" => {
                    1 + usize::from(group(rest.get(1), Delimiter::Parenthesis).is_some())
                }
                TokenTree::Ident(word) => self.scan_word(&word.to_string(), rest, items, &mut path),
                TokenTree::Group(group) => {
                    self.scan(group.stream(), false);
                    1
                }
                // The name after `a::` belongs to a path that has been read, or begins after generic arguments.
                TokenTree::Punct(_) if is_separator(rest) => 2 + usize::from(ident(rest.get(2)).is_some()),
                _ => 1,
            };
            at += taken;
        }
    }

    /// Reads what begins with this word, and returns how many tokens that was.
    fn scan_word(&mut self, word: &str, rest: &[TokenTree], items: bool, path: &mut Option<String>) -> usize {
        match word {
            "use" if !is_punct(rest.get(1), '<') => {
                let end = rest.iter().position(|it| is_punct(Some(it), ';')).unwrap_or(rest.len());
                read_use(&rest[1..end], &[], &mut |path, name| self.imports.push(Import { path, name }));
                return end;
            }
            "mod" if items => {
                let Some(name) = ident(rest.get(1)) else { return 1 };
                if let Some(body) = group(rest.get(2), Delimiter::Brace) {
                    let mut inner = Self::default();
                    inner.scan(body.stream(), true);
                    self.inline.push((name, inner));
                    return 3;
                }
                self.files.push(FileModule { name, path: path.take() });
                return 2;
            }
            "struct" | "enum" | "union" | "trait" | "fn" | "type" | "const" | "static" if items => {
                // `const fn name` is met again at `fn`.
                self.definitions.extend(ident(rest.get(1)).filter(|name| name != "fn"));
            }
            "macro_rules" if items => self.definitions.extend(ident(rest.get(2))),
            _ => {}
        }
        let mut segments = vec![word.to_owned()];
        let mut end = 1;
        while is_separator(&rest[end..])
            && let Some(name) = ident(rest.get(end + 2))
        {
            segments.push(name);
            end += 3;
        }
        if segments.len() > 1 {
            self.paths.push(segments);
        }
        end
    }
}

/// Calls `found` with the path and the name of each leaf of a `use`.
fn read_use(tokens: &[TokenTree], before: &[String], found: &mut impl FnMut(Vec<String>, String)) {
    let mut path = before.to_vec();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Ident(word) if word == "as" => {
                let name = ident(tokens.get(at + 1)).unwrap_or_default();
                return found(path, name);
            }
            TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Group(leaves) => {
                let leaves: Vec<TokenTree> = leaves.stream().into_iter().collect();
                leaves.split(|it| is_punct(Some(it), ',')).filter(|it| !it.is_empty()).for_each(|leaf| {
                    read_use(leaf, &path, found);
                });
                return;
            }
            TokenTree::Punct(star) if star.as_char() == '*' => return found(path, "*".into()),
            _ => {}
        }
        at += 1;
    }
    let name = path.last().cloned().unwrap_or_default();
    found(path, name);
}

/// Returns the length of the attribute at the beginning, with what it belongs to if that is compiled for tests alone.
fn skip_test_code(tokens: &[TokenTree]) -> usize {
    let Some(attribute) = group(tokens.get(1), Delimiter::Bracket) else { return 1 };
    if !is_for_tests(attribute) {
        return 2;
    }
    let is_use =
        tokens.iter().skip(2).find_map(|it| ident(Some(it)).filter(|word| word != "pub")).as_deref() == Some("use");
    let ends = |it: &TokenTree| is_punct(Some(it), ';') || (!is_use && group(Some(it), Delimiter::Brace).is_some());
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// `cfg(test)`, or a `cfg` of which `test` is one of several conditions that must all hold.
fn is_for_tests(attribute: &Group) -> bool {
    let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
    let conditions = group(tokens.get(1), Delimiter::Parenthesis).map(|it| it.stream().to_string());
    ident(tokens.first()).as_deref() == Some("cfg")
        && conditions.is_some_and(|it| it == "test" || (it.starts_with("all") && it.contains("test")))
}

/// Returns the file that the attribute `path = "…"` names.
fn path_of(attribute: &Group) -> Option<String> {
    let tokens: Vec<TokenTree> = attribute.stream().into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(word), _, TokenTree::Literal(file)] if word == "path" => {
            Some(file.to_string().trim_matches('"').to_owned())
        }
        _ => None,
    }
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(word)) => Some(word.to_string()),
        _ => None,
    }
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// `::`
fn is_separator(tokens: &[TokenTree]) -> bool {
    is_punct(tokens.first(), ':') && is_punct(tokens.get(1), ':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(module: &Module) -> Vec<String> {
        module.imports.iter().map(|it| format!("{} as {}", it.path.join("::"), it.name)).collect()
    }

    #[test]
    fn every_form_of_use_is_read() {
        for (text, expected) in [
            ("use a::b;", vec!["a::b as b"]),
            ("use a as b;", vec!["a as b"]),
            (
                "use crate::{a, b::{self, c as d}, e::*};",
                vec!["crate::a as a", "crate::b as b", "crate::b::c as d", "crate::e as *"],
            ),
            ("use super::super::x;", vec!["super::super::x as x"]),
            ("pub(crate) use self::a::B;", vec!["self::a::B as B"]),
            ("fn f() { use crate::a::b; }", vec!["crate::a::b as b"]),
            ("#[cfg(unix)] use crate::a;", vec!["crate::a as a"]),
            ("#[cfg(test)] use crate::{a, b}; use c::d;", vec!["c::d as d"]),
            ("#[cfg(test)] mod tests { use crate::a; } use b;", vec!["b as b"]),
            ("#[cfg(not(test))] use crate::a;", vec!["crate::a as a"]),
            ("// use crate::a;\nconst A: &str = \"use crate::a;\";", vec![]),
        ] {
            assert_eq!(paths(&Module::read(text)), expected, "{text}");
        }
    }

    #[test]
    fn paths_are_read_wherever_code_has_them() {
        for (text, expected) in [
            ("fn f() { crate::a::b(); }", vec!["crate::a::b"]),
            ("fn f(x: &super::A) -> a::B<crate::c::D> {}", vec!["super::A", "a::B", "crate::c::D"]),
            ("fn f() { assert!(crate::a::b() == 1); }", vec!["crate::a::b"]),
            ("fn f() { Vec::<crate::a::B>::new() }", vec!["crate::a::B"]),
            ("impl From<crate::a::B> for C {}", vec!["crate::a::B"]),
            ("pub(in crate::a) struct B;", vec![]),
            ("#[cfg(test)] fn f() { crate::a::b(); }", vec![]),
        ] {
            let paths: Vec<String> = Module::read(text).paths.iter().map(|it| it.join("::")).collect();
            assert_eq!(paths, expected, "{text}");
        }
    }

    #[test]
    fn modules_and_definitions_are_read() {
        let module = Module::read(
            "mod a; pub(crate) mod b; mod c { mod d; struct E; } #[cfg(test)] mod tests;
             pub struct S; pub const fn f() { struct Inner; } macro_rules! m { () => {} } pub trait T { fn g(); }",
        );
        let names = |module: &Module| module.files.iter().map(|it| it.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&module), ["a", "b"]);
        assert_eq!(module.inline[0].0, "c");
        assert_eq!(names(&module.inline[0].1), ["d"]);
        let definitions: Vec<&str> = module.definitions.iter().map(String::as_str).collect();
        assert_eq!(definitions, ["S", "T", "f", "m"]);
    }
    #[test]
    fn a_path_belongs_to_the_next_module() {
        let module = Module::read("#[path = \"../x/mod.rs\"] #[cfg(unix)] mod a; mod b;");
        let paths: Vec<Option<&str>> = module.files.iter().map(|it| it.path.as_deref()).collect();
        assert_eq!(paths, [Some("../x/mod.rs"), None]);
    }
}
