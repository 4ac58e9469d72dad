#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use super::*;

/// Answers each piece with the same.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, tasks)
}

async fn ask(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_wire_is_cut_silent_slow_and_open_again() {
    let (end, _echo) = echo().await;
    let wire = Wire::start([end]).await.unwrap();
    let mut stream = TcpStream::connect(wire.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "one").await.unwrap(), "one");

    wire.conduct(Conduct::Silent);
    let mut second = TcpStream::connect(wire.address()).await.unwrap();
    for stream in [&mut stream, &mut second] {
        let asked = tokio::time::timeout(Duration::from_millis(50), ask(stream, "two")).await;
        assert!(asked.is_err(), "something passed");
    }
    wire.open();
    let mut answer = [0; 3];
    for stream in [&mut stream, &mut second] {
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"two", "what was sent meanwhile comes later");
    }

    wire.conduct(Conduct::Carry(Duration::from_millis(40)));
    let started = std::time::Instant::now();
    assert_eq!(ask(&mut stream, "three").await.unwrap(), "three");
    assert!(started.elapsed() >= Duration::from_millis(80));

    wire.conduct(Conduct::Cut);
    ask(&mut stream, "four").await.unwrap_err();
    // The listener goes a moment after the connections.
    while TcpStream::connect(wire.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    wire.open();
    let mut again = loop {
        if let Ok(stream) = TcpStream::connect(wire.address()).await {
            break stream;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(ask(&mut again, "five").await.unwrap(), "five");
}

#[tokio::test]
async fn an_answer_is_lost_once_and_an_absent_end_is_passed_over() {
    let (end, _echo) = echo().await;
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
    let wire = Wire::start([nobody, end]).await.unwrap();
    wire.lose_answers("refresh", 1);
    wire.follow(|piece| piece.starts_with(b"a refresh").then(|| "it".to_owned()));
    let connect = || TcpStream::connect(wire.address());
    assert_eq!(ask(&mut connect().await.unwrap(), "a read").await.unwrap(), "a read");
    ask(&mut connect().await.unwrap(), "a refresh").await.unwrap_err();
    assert_eq!(ask(&mut connect().await.unwrap(), "a refresh").await.unwrap(), "a refresh");
    while wire.seen().lost < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.seen().connections, 3);
    let ends: Vec<_> = wire.exchanges().iter().map(|it| it.end.map(|(_, how)| how)).collect();
    assert_eq!(ends, [Some(Passage::Swallowed), Some(Passage::Answered)]);
}

#[tokio::test]
async fn a_request_is_followed_to_its_end() {
    let (end, _echo) = echo().await;
    let wire = Wire::start([end]).await.unwrap();
    wire.follow(|piece| piece.first().map(|_| String::new()));
    // The end of the nth.
    let ended = async |nth: usize| {
        let looked = async {
            loop {
                if let Some(Exchange { forwarded, end: Some((_, how)), .. }) = wire.exchanges().get(nth - 1) {
                    break (forwarded.is_some(), *how);
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looked).await.unwrap()
    };
    let mut stream = TcpStream::connect(wire.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "answered").await.unwrap(), "answered");
    assert_eq!(ended(1).await, (true, Passage::Answered));

    wire.conduct(Conduct::Silent);
    stream.write_all(b"cut").await.unwrap();
    while wire.exchanges().len() < 2 {
        tokio::task::yield_now().await;
    }
    wire.conduct(Conduct::Cut);
    assert_eq!(ended(2).await, (false, Passage::Cut));

    // The listener goes a moment after the connections.
    while TcpStream::connect(wire.address()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    wire.conduct(Conduct::Carry(Duration::from_millis(40)));
    let mut stream = loop {
        if let Ok(stream) = TcpStream::connect(wire.address()).await {
            break stream;
        }
        tokio::task::yield_now().await;
    };
    stream.write_all(b"gone").await.unwrap();
    drop(stream);
    assert_eq!(ended(3).await, (true, Passage::HungUp));
}
