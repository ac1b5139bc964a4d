//! How the list of workers is cut into pages.

use prost::Message as _;
use towpath_proto::v1;

use crate::pages::{PAGE_BYTES_MAX, PAGE_MAX, PageRequest};

/// The page of `workers` that `request` asks for. A page ends after a worker, named by its name:
/// whoever comes or goes in between, each of the others is in one page.
pub(super) fn page_of(
    mut workers: Vec<v1::Worker>,
    request: &v1::ListWorkersRequest,
) -> v1::ListWorkersResponse {
    let page = PageRequest { size: request.page_size, token: request.page_token.clone() };
    let size = page.size(PAGE_MAX);
    workers.retain(|worker| request.page_token.is_empty() || worker.name > request.page_token);
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    let mut bytes = 0;
    let mut fits = |worker: &v1::Worker| {
        bytes += worker.encoded_len();
        bytes <= PAGE_BYTES_MAX
    };
    // One at least, or a client would ask for the same page for ever.
    let count = workers.iter().take(size).take_while(|worker| fits(worker)).count().max(1);
    let more = workers.len() > count;
    workers.truncate(count);
    let last = workers.last().filter(|_| more);
    let next_page_token = last.map(|worker| worker.name.clone()).unwrap_or_default();
    v1::ListWorkersResponse { workers, next_page_token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_workers_are_bounded_in_number_and_in_bytes() {
        let worker = |name: usize| v1::Worker {
            name: format!("w{name:04}"),
            tags: vec!["t".repeat(100); 64],
            ..Default::default()
        };
        let all: Vec<v1::Worker> = (0..1_000).rev().map(worker).collect();
        let (mut request, mut seen) = (v1::ListWorkersRequest::default(), Vec::new());
        loop {
            let page = page_of(all.clone(), &request);
            assert!(page.encoded_len() <= PAGE_BYTES_MAX + 64);
            seen.extend(page.workers.into_iter().map(|worker| worker.name));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(seen.len(), 1_000);
        assert!(seen.is_sorted(), "each worker once, by name");
        let two = v1::ListWorkersRequest { page_size: 2, ..Default::default() };
        assert_eq!(page_of(all, &two).workers.len(), 2);
        assert_eq!(page_of(Vec::new(), &two), v1::ListWorkersResponse::default());
    }
}
