//! How the list of workers is cut into pages.

use prost::Message as _;
use towpath_proto::v1;

use crate::pages::{PAGE_MAX, PageRequest, PageRoom};

/// The page of `workers` that `page` asks for, and the token of the next. A page ends after a
/// worker, named by its name: whichever come or go in between, each of the others is in one page.
pub(crate) fn page_of(
    mut workers: Vec<v1::Worker>,
    page: &PageRequest,
) -> (Vec<v1::Worker>, String) {
    let mut room = PageRoom::of(page.size(PAGE_MAX));
    workers.retain(|worker| page.token.is_empty() || worker.name > page.token);
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    let count = workers.iter().take_while(|worker| room.takes(worker.encoded_len())).count();
    let more = workers.len() > count;
    workers.truncate(count);
    let last = workers.last().filter(|_| more);
    let next = last.map(|worker| worker.name.clone()).unwrap_or_default();
    (workers, next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PAGE_BYTES_MAX;

    #[test]
    fn pages_of_workers_are_bounded_in_number_and_in_bytes() {
        let worker = |name: usize| v1::Worker {
            name: format!("w{name:04}"),
            tags: vec!["t".repeat(100); 64],
            ..Default::default()
        };
        let all: Vec<v1::Worker> = (0..1_000).rev().map(worker).collect();
        let (mut request, mut seen) = (PageRequest::default(), Vec::new());
        loop {
            let (workers, next) = page_of(all.clone(), &request);
            let bytes: usize = workers.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes <= PAGE_BYTES_MAX, "{bytes}");
            seen.extend(workers.into_iter().map(|worker| worker.name));
            if next.is_empty() {
                break;
            }
            request.token = next;
        }
        assert_eq!(seen.len(), 1_000);
        assert!(seen.is_sorted(), "each worker once, by name");
        let two = PageRequest { size: 2, ..PageRequest::default() };
        assert_eq!(page_of(all, &two).0.len(), 2);
        assert_eq!(page_of(Vec::new(), &two), (Vec::new(), String::new()));
    }
}
