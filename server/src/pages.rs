//! How a list is cut into pages.

use towpath_storage::Position;

use crate::command_error::CommandError;

/// Most runs, jobs or gates of one page.
pub(crate) const PAGE_MAX: u32 = 1_000;
/// Most bytes of one page. Source: a client reads messages of 4 MiB, and a job with all that it runs
/// may have more than 100 KiB.
pub(crate) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Which page is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageRequest {
    /// Most entries of it; 0: as many as the list has by default.
    pub(crate) size: u32,
    /// Where the page before it ended; empty for the first.
    pub(crate) token: String,
}

impl PageRequest {
    /// How many entries the page has at most; `default` if no number is asked for.
    pub(crate) fn size(&self, default: u32) -> usize {
        // More than the bound is cut and not refused, as the API guidelines for pages have it: the
        // caller goes on with the token.
        (if self.size == 0 { default } else { self.size.min(PAGE_MAX) }) as usize
    }

    /// The token as the number of an entry.
    pub(crate) fn index(&self) -> Result<usize, CommandError> {
        match self.token.as_str() {
            "" => Ok(0),
            token => token.parse().map_err(|_| token_invalid(token)),
        }
    }

    /// The token as the last gate of the page before. `None`: this is the first page.
    pub(crate) fn gate(&self) -> Result<Option<GateToken>, CommandError> {
        match self.token.as_str() {
            "" => Ok(None),
            token => GateToken::read(token).map(Some).ok_or_else(|| token_invalid(token)),
        }
    }
}

/// Where a page of gates ends: a gate, named by where its run begins in the log and by its place in
/// the file. Both stay, whatever happens between two pages; a count of gates would not, and a gate
/// that is approved meanwhile would hide another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GateToken {
    /// The position of the first record of the run.
    pub(crate) begun: Position,
    /// The number of the job.
    pub(crate) nth: u32,
}

impl GateToken {
    fn read(token: &str) -> Option<Self> {
        // Clients may forge a token. It names a place in a list that they may read anyway, and
        // nothing else.
        let (begun, nth) = token.split_once('/')?;
        Some(Self { begun: begun.parse().ok()?, nth: nth.parse().ok()? })
    }
}

impl std::fmt::Display for GateToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.begun, self.nth)
    }
}

/// How full a page is.
#[derive(Debug)]
pub(crate) struct PageRoom {
    entries: usize,
    size: usize,
    bytes: usize,
    bytes_max: usize,
}

impl PageRoom {
    /// A page of at most `size` entries and [`PAGE_BYTES_MAX`] bytes.
    pub(crate) fn of(size: usize) -> Self {
        Self { entries: 0, size, bytes: 0, bytes_max: PAGE_BYTES_MAX }
    }

    /// Whether the page has room for one more entry of `bytes` bytes, which then takes it. The first
    /// always has: an empty page would be asked for again without end.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let is_full = self.entries >= self.size || self.bytes > self.bytes_max;
        if is_full && self.entries > 0 {
            return false;
        }
        self.entries += 1;
        true
    }
}

/// A token that no answer had.
pub(crate) fn token_invalid(token: &str) -> CommandError {
    CommandError::MessageInvalid { what: format!("`{token}` is not the token of a page") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(size: u32, token: &str) -> PageRequest {
        PageRequest { size, token: token.to_owned() }
    }

    #[test]
    fn a_page_has_the_size_that_is_asked_for_up_to_a_bound() {
        assert_eq!(page(0, "").size(50), 50);
        assert_eq!(page(7, "").size(50), 7);
        assert_eq!(page(u32::MAX, "").size(50), PAGE_MAX as usize);
    }

    #[test]
    fn a_token_names_the_place_where_the_page_before_it_ended() {
        assert_eq!(page(0, "").index().unwrap(), 0);
        assert_eq!(page(0, "17").index().unwrap(), 17);
        let gate = GateToken { begun: 12, nth: 3 };
        assert_eq!(page(0, &gate.to_string()).gate().unwrap(), Some(gate));
        assert_eq!(page(0, "").gate().unwrap(), None);
        for wrong in ["x", "-1", "1/", "/1", "1/2/3"] {
            assert!(page(0, wrong).gate().is_err(), "{wrong}");
        }
        assert!(page(0, "1/2").index().is_err());
    }

    #[test]
    fn gates_of_an_older_run_come_first() {
        let at = |begun, nth| GateToken { begun, nth };
        assert!(at(1, 9) < at(2, 0) && at(2, 0) < at(2, 1));
    }

    #[test]
    fn a_page_holds_what_fits_and_never_nothing() {
        let of = |size, entries: &[usize]| {
            let mut room = PageRoom { bytes_max: 10, ..PageRoom::of(size) };
            entries.iter().take_while(|bytes| room.takes(**bytes)).count()
        };
        assert_eq!(of(9, &[4, 4, 4]), 2);
        assert_eq!(of(9, &[5, 5, 1]), 2);
        assert_eq!(of(9, &[11, 1]), 1);
        assert_eq!(of(2, &[1, 1, 1]), 2);
        assert_eq!(of(9, &[]), 0);
    }
}
