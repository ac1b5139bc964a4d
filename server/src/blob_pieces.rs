//! A blob as a bounded stream of pieces.

use bytes::Bytes;
use tokio::sync::mpsc;
use towpath_engine::ids::Digest;
use towpath_storage::Blobs;

use crate::command_error::CommandError;

/// Bytes of one piece.
const PIECE_BYTES: u64 = 64 * 1024;

/// Sends what the blob `sha256` holds from byte `offset` on, and ends with the blob, with the client,
/// or with an error.
pub(crate) async fn send_blob(
    blobs: &Blobs,
    sha256: &Digest,
    mut offset: u64,
    send: &mpsc::Sender<Result<Bytes, CommandError>>,
) {
    loop {
        // One piece at a time: a blob may be 1 GiB, and the queue of `send` bounds what is in memory.
        let piece = match blobs.get(&sha256.0, offset..offset + PIECE_BYTES) {
            Ok(piece) if piece.is_empty() => return,
            Ok(piece) => {
                offset += piece.len() as u64;
                Ok(piece.into())
            }
            Err(error) => Err(error.into()),
        };
        let failed = piece.is_err();
        if send.send(piece).await.is_err() || failed {
            return;
        }
    }
}
