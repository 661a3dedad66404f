//! The ledger in the eyes of code that is not ours: `signed_note` and `tlog_tiles`, a published
//! implementation of the C2SP specifications, read a running server.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use signed_note::{Note, StandardVerifier, VerifierList};
use strongroom_client::connection::Body;
use strongroom_client::transport::Client;
use strongroom_protocol::id::PublicKey;
use strongroom_protocol::message::ConsistencyAnswer;
use strongroom_protocol::role::Role;
use strongroom_protocol::route::Route;
use strongroom_protocol::tile::Tile;
use tlog_tiles::{Hash, TileHashReader, TileReader};
use tokio::runtime::Handle;

use crate::harness::TestServer;

/// Fetches the tiles that the verifier names, by its own paths.
struct Remote(Client);

impl Remote {
    fn get(&self, route: Route) -> Vec<u8> {
        let request = self.0.request_once(&route, "", Body::empty());
        tokio::task::block_in_place(|| Handle::current().block_on(request)).unwrap().to_vec()
    }
}

impl TileReader for Remote {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::Error> {
        let tiles = tiles.iter().map(|tile| {
            // The verifier's paths name the height of tiles first; in C2SP's it is always 8.
            let path = tile.path();
            let path = path.strip_prefix("tile/8/").unwrap();
            self.get(Route::Tile(Tile::parse(path).unwrap()))
        });
        Ok(tiles.collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::Tile], _: &[Vec<u8>]) {}
}

/// A checkpoint as the public code reads and verifies it.
fn checkpoint(note: &[u8], origin: &str, key: &PublicKey) -> tlog_tiles::Checkpoint {
    let public = [&[1u8][..], &key.0].concat();
    let id = signed_note::key_id(origin, &public);
    let verifier_key = format!("{origin}+{id:08x}+{}", STANDARD.encode(&public));
    let verifier = StandardVerifier::new(&verifier_key).unwrap();
    let note = Note::from_bytes(note).unwrap();
    let (verified, unverified) = note.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
    assert_eq!((verified.len(), unverified.len()), (1, 0));
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!(checkpoint.origin(), origin);
    checkpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_verifier_accepts_our_checkpoints_tiles_and_proofs() {
    let server = TestServer::start().await;
    let writer = server.writer("erp").await;
    let (_, receipt) = writer.snapshot("db", &[b"bytes"]).await;
    let auditor = server.principal(None, Role::Audit).await;
    let remote = Remote(auditor.client());
    let key = auditor.profile.settings().ledger_key;
    let origin = strongroom_protocol::checkpoint::origin_of(&key);
    let mut heads = Vec::new();
    for more in [0, 250, 40, 320, 256] {
        for _ in 0..more {
            server.token(None, Role::Operator);
        }
        heads.push(checkpoint(&remote.get(Route::Checkpoint), &origin, &key));
    }
    let newest = heads.last().unwrap();
    let (size, root) = (newest.size(), *newest.hash());
    assert!(size > 600);

    // Inclusion: their proof, from our tiles, of entries from our bundles.
    let hashes = TileHashReader::new(size, root, &remote);
    let bundles = size.div_ceil(256);
    let mut index = 0;
    for bundle in 0..bundles {
        let width = (size - bundle * 256).min(256);
        let part = if width < 256 { format!(".p/{width}") } else { String::new() };
        let path = format!("entries/{bundle:03}{part}");
        let bytes = remote.get(Route::Tile(Tile::parse(&path).unwrap()));
        let mut rest = bytes.as_slice();
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (entry, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)));
            if index % 37 == 0 || index == receipt.leaf_index || index + 1 == size {
                let proof = tlog_tiles::prove_record(size, index, &hashes).unwrap();
                let leaf = tlog_tiles::record_hash(entry);
                tlog_tiles::check_record(&proof, size, root, index, leaf).unwrap();
                assert!(tlog_tiles::check_record(&proof, size, root, index + 1, leaf).is_err());
            }
            (rest, index) = (tail, index + 1);
        }
    }
    assert_eq!(index, size);

    // Consistency: our proofs between all heads that were published.
    for old in &heads {
        let answer = remote.get(Route::Consistency(old.size()));
        let answer: ConsistencyAnswer = serde_json::from_slice(&answer).unwrap();
        let proof = answer.proof.0.as_chunks::<32>().0.iter().map(|hash| Hash(*hash)).collect();
        tlog_tiles::check_tree(&proof, size, root, old.size(), *old.hash()).unwrap();
        let theirs = tlog_tiles::prove_tree(size, old.size(), &hashes).unwrap();
        assert_eq!(theirs, proof, "both build the same proof");
    }

    // A receipt that a client got, under the head of its commit.
    let head = checkpoint(receipt.checkpoint.as_bytes(), &origin, &key);
    let proof = receipt.proof.iter().map(|hash| Hash(*hash)).collect();
    let leaf = tlog_tiles::record_hash(&receipt.entry);
    let (size, root) = (head.size(), *head.hash());
    tlog_tiles::check_record(&proof, size, root, receipt.leaf_index, leaf).unwrap();
}
