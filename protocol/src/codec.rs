//! Bounded reading and writing of fixed-order, little-endian fields.
//!
//! Everything that is signed or hashed goes through here: no optional fields, lengths before
//! bytes, a four-byte magic per type. A [`Reader`] never allocates more than the input holds,
//! compares each length with the caller's bound first, and [`Reader::finish`] refuses leftovers,
//! so that one value has one encoding.

use thiserror::Error;

/// Why bytes are not a value of the expected type.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// The input ends inside a field.
    #[error("{0}: input is too short")]
    Short(&'static str),
    /// Bytes remain after the last field.
    #[error("{0}: bytes left over")]
    Leftover(&'static str),
    /// The magic is that of another type or version.
    #[error("{0}: unknown magic or version")]
    Magic(&'static str),
    /// A length or count is above its bound.
    #[error("{0}: length or count is above its bound")]
    TooLong(&'static str),
    /// A field holds a value that the format does not allow.
    #[error("{0}: value is not allowed")]
    Value(&'static str),
}

/// A cursor over untrusted bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` as a value called `what` (used in errors only).
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// Consumes the four-byte magic.
    pub fn magic(&mut self, magic: &[u8; 4]) -> Result<(), DecodeError> {
        if self.take(4)? == magic {
            return Ok(());
        }
        Err(DecodeError::Magic(self.what))
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) =
            self.rest.split_at_checked(count).ok_or(DecodeError::Short(self.what))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Short(self.what))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, little-endian, signed.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// One byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value(self.what)),
        }
    }

    /// A count (u32) of at most `max` items.
    pub fn count(&mut self, max: u32) -> Result<u32, DecodeError> {
        let count = self.u32()?;
        if count > max {
            return Err(DecodeError::TooLong(self.what));
        }
        Ok(count)
    }

    /// Length-prefixed (u32) bytes, at most `max`.
    pub fn bytes(&mut self, max: u32) -> Result<&'a [u8], DecodeError> {
        let length = self.count(max)?;
        self.take(usize::try_from(length).map_err(|_| DecodeError::TooLong(self.what))?)
    }

    /// Length-prefixed (u32) UTF-8 text of at most `max` bytes.
    pub fn text(&mut self, max: u32) -> Result<&'a str, DecodeError> {
        let bytes = self.bytes(max)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Value(self.what))
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// An error that says that the value just read is not allowed.
    pub fn refuse<T>(&self) -> Result<T, DecodeError> {
        Err(DecodeError::Value(self.what))
    }

    /// Ends the reading; leftovers are an error.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(DecodeError::Leftover(self.what))
    }
}

/// Builds an encoding field by field.
#[derive(Debug, Default)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Starts a value with its magic.
    pub fn with_magic(magic: &[u8; 4]) -> Self {
        Self { out: magic.to_vec() }
    }

    /// Bytes without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, little-endian, signed.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// A count of items, as u32. A count that does not fit is a bug of the caller, whose limits
    /// (all far below) must hold before it encodes.
    pub fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Length-prefixed (u32) bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len()).raw(bytes)
    }

    /// The finished encoding.
    pub fn finish(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_and_leftovers_are_refused() {
        let mut out = Writer::with_magic(b"TST1");
        out.u8(7).u32(1 << 20).u64(1 << 40).i64(-5).bool(true).bool(false).bytes(b"abc");
        let bytes = out.finish();
        let mut reader = Reader::new("test", &bytes);
        reader.magic(b"TST1").unwrap();
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!((reader.u32(), reader.u64()), (Ok(1 << 20), Ok(1 << 40)));
        assert_eq!(reader.i64(), Ok(-5));
        assert_eq!((reader.bool(), reader.bool()), (Ok(true), Ok(false)));
        assert_eq!(reader.clone().finish(), Err(DecodeError::Leftover("test")));
        assert_eq!(reader.remaining(), 7);
        assert_eq!(reader.bytes(3), Ok(&b"abc"[..]));
        assert_eq!(reader.clone().finish(), Ok(()));
        assert_eq!(reader.u8(), Err(DecodeError::Short("test")));
        assert_eq!(Reader::new("test", &bytes).magic(b"TST2"), Err(DecodeError::Magic("test")));
    }

    #[test]
    fn a_count_is_bounded_and_a_bool_is_0_or_1() {
        for (count, max, expected) in [
            (3u32, 3, Ok(3)),
            (2, 3, Ok(2)),
            (4, 3, Err(DecodeError::TooLong("test"))),
            (u32::MAX, 3, Err(DecodeError::TooLong("test"))),
        ] {
            assert_eq!(Reader::new("test", &count.to_le_bytes()).count(max), expected);
        }
        assert_eq!(Reader::new("test", &[2]).bool(), Err(DecodeError::Value("test")));
    }
}
