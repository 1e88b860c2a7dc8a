//! Netlink attributes (linux/netlink.h). Texts have a final NUL; numbers are in network byte order, as netfilter wants them.

const HEADER: usize = 4;
const NESTED: u16 = 1 << 15;
const ALIGNMENT: usize = 4;

/// Encoded attributes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends an attribute. A value has at most 65,531 bytes; what is longer is split by the caller.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(HEADER + value.len()).expect("callers split what is long");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nested(self, kind: u16, value: &Self) -> Self {
        self.nested_bytes(kind, &value.0)
    }

    /// Appends an attribute that contains others, which are encoded already.
    pub(crate) fn nested_bytes(self, kind: u16, value: &[u8]) -> Self {
        self.bytes(kind | NESTED, value)
    }

    /// Appends encoded attributes.
    pub(crate) fn and(mut self, others: &Self) -> Self {
        self.0.extend(&others.0);
        self
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Returns the attributes in `bytes` with their kinds. Stops at the first one that is damaged.
pub(crate) fn read(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<HEADER>()?;
        let [low, high, kind @ ..] = *header;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes(kind) & !NESTED, value))
    })
}

/// Returns the value of the first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    read(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Returns a text without its final NUL.
pub(crate) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::new().number(1, 7).text(2, "ab");
        let outer = Attributes::new().bytes(9, &[1, 2, 3, 4, 5]).nested(3, &inner);
        assert_eq!(outer.as_bytes().len() % ALIGNMENT, 0);
        assert_eq!(find(outer.as_bytes(), 9), Some(&[1, 2, 3, 4, 5][..]));
        let inner = find(outer.as_bytes(), 3).expect("the flag of nested attributes is not part of the kind");
        let found: Vec<_> = read(inner).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(found, [(1, vec![0, 0, 0, 7]), (2, b"ab\0".to_vec())]);
        assert_eq!(text(b"ab\0"), "ab");
        assert_eq!(read(&[200, 0, 1, 0, 5]).count(), 0, "a length beyond the end");
    }
}
