//! A disk that is asked whether its copy is whole, and says nothing.

use super::liar::{Manner, among_liars};
use super::*;

/// Who scrubs a disk asks for one content after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_that_does_not_say_whether_its_copy_is_whole_is_waited_for_once() {
    let (nodes, liars) = among_liars(|_| vec![Manner::Stall]).await;
    until("it to be met", || liars[0].is_met_by(&nodes[1])).await;
    let contents = [ContentId([7; 32]), ContentId([8; 32])];
    liars[0].claims_all(&nodes[1], &contents, 1);
    let net = &nodes[1].net;
    until("it to be known", || net.keepers(contents[1]) == [liars[0].id()]).await;
    assert!(!net.is_whole_elsewhere_within(contents[0], Duration::from_millis(200)).await);
    let asked = tokio::time::timeout(PATIENCE, net.is_whole_elsewhere(contents[1])).await;
    assert_eq!(asked, Ok(false), "it is waited for again");
}
