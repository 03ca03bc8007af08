use proptest::prelude::*;

use super::*;

const KEY: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// The answer to the request made of `lines`.
fn parse(lines: &[&str]) -> Result<Request, Errno> {
    let mut parser = Parser::default();
    for line in lines {
        assert!(parser.line(line).is_none(), "{line}");
    }
    parser.line("").unwrap()
}

fn set(lines: &[&str]) -> Result<Configuration, Errno> {
    let mut all = vec!["set=1"];
    all.extend(lines);
    match parse(&all)? {
        Request::Set(configuration) => Ok(*configuration),
        Request::Get => unreachable!("it was set=1"),
    }
}

fn error(lines: &[&str]) -> Option<Errno> {
    set(lines).err()
}

#[test]
fn every_key_of_the_protocol_is_understood() {
    let public_key = format!("public_key={KEY}");
    let preshared_key = format!("preshared_key={KEY}");
    let configuration = set(&[
        &format!("private_key={KEY}"),
        "listen_port=51820",
        "fwmark=1048576",
        "replace_peers=true",
        &public_key,
        &preshared_key,
        "endpoint=[2001:db8::1]:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.1/8",
        "allowed_ip=-2001:db8::/32",
        "protocol_version=1",
        &public_key,
        "update_only=true",
        "endpoint=192.0.2.1:1",
        &public_key,
        "remove=true",
    ])
    .unwrap();

    assert!(matches!(configuration.private_key, Some(Some(_))));
    assert_eq!(configuration.listen_port, Some(51820));
    assert_eq!(configuration.fwmark, Some(0x0010_0000));
    assert!(configuration.replace_peers);
    let [
        (_, PeerChange::Upsert(first)),
        (_, PeerChange::Update(second)),
        (_, PeerChange::Remove),
    ] = &configuration.peers[..]
    else {
        panic!("three peers, each in its way");
    };
    assert_eq!(first.endpoint, Some("[2001:db8::1]:51820".parse().unwrap()));
    assert_eq!(first.persistent_keepalive, Some(25));
    assert!(first.replace_allowed_ips && first.preshared_key.is_some());
    assert_eq!(
        first.allowed_ips,
        [
            AllowedIpChange::Add("10.0.0.0/8".parse().unwrap()),
            AllowedIpChange::Remove("2001:db8::/32".parse().unwrap())
        ]
    );
    assert_eq!(second.endpoint, Some("192.0.2.1:1".parse().unwrap()));
}

#[test]
fn a_key_of_zeros_takes_the_key_away() {
    let zeros = "0".repeat(64);
    let configuration = set(&[&format!("private_key={zeros}")]).unwrap();
    assert!(matches!(configuration.private_key, Some(None)));
}

#[test]
fn one_bad_line_refuses_the_whole_request() {
    let peer = format!("public_key={KEY}");
    for bad in [
        "listen_port=65536",
        "listen_port=-1",
        "listen_port=+1",
        "listen_port=",
        "fwmark=0x10",
        "replace_peers=false",
        "private_key=01",
        "unknown=1",
        "endpoint=192.0.2.1:1",
    ] {
        assert_eq!(error(&[bad]), Some(Errno::INVALID), "{bad}");
        assert_eq!(error(&["fwmark=1", bad, "fwmark=2"]), Some(Errno::INVALID));
    }
    for bad in [
        "endpoint=192.0.2.1",
        "endpoint=192.0.2.1:0",
        "endpoint=0.0.0.0:1",
        "endpoint=[ff02::1]:1",
        "endpoint=example.org:1",
        "endpoint=[fe80::1%nowhere0]:1",
        "allowed_ip=10.0.0.0/33",
        "allowed_ip=10.0.0.0",
        "allowed_ip=--10.0.0.0/8",
        "persistent_keepalive_interval=65536",
        "protocol_version=2",
        "preshared_key=zz",
        "update_only=1",
        "listen_port=1",
    ] {
        assert_eq!(error(&[&peer, bad]), Some(Errno::INVALID), "{bad}");
    }
    assert_eq!(error(&["no equals sign"]), Some(Errno::PROTOCOL));
}

#[test]
fn an_endpoint_may_name_its_interface() {
    let endpoint = endpoint("[fe80::1%lo]:51820").unwrap();
    assert_eq!(endpoint, "[fe80::1%1]:51820".parse().unwrap());
}

#[test]
fn other_versions_of_the_protocol_are_refused() {
    for operation in ["get=2", "set=0", "hello", "get=1 "] {
        assert_eq!(parse(&[operation]).err(), Some(Errno::PROTOCOL));
    }
    assert_eq!(parse(&["get=1", "set=1"]).err(), Some(Errno::PROTOCOL));
}

#[test]
fn requests_follow_each_other_after_an_error() {
    let mut parser = Parser::default();
    assert!(parser.line("").is_none());
    assert!(parser.line("nonsense").is_none());
    assert!(parser.line("get=1").is_none());
    assert_eq!(parser.line("").unwrap().err(), Some(Errno::PROTOCOL));
    assert!(parser.line("get=1").is_none());
    assert!(matches!(parser.line("").unwrap(), Ok(Request::Get)));
}

#[test]
fn what_we_encode_we_understand() {
    let key = PublicKey([7; 32]);
    let lines = [
        format!("public_key={}", "07".repeat(32)),
        format!("preshared_key={KEY}"),
        "endpoint=192.0.2.1:51820".to_owned(),
        "persistent_keepalive_interval=25".to_owned(),
        "replace_allowed_ips=true".to_owned(),
        "allowed_ip=10.0.0.0/8".to_owned(),
        "allowed_ip=-10.1.0.0/16".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut configuration = set(&lines).unwrap();
    configuration.listen_port = Some(1);
    configuration.fwmark = Some(2);
    configuration.replace_peers = true;
    configuration.peers.push((key, PeerChange::Remove));
    let text = configuration.encode();
    let expected = [
        &["set=1", "listen_port=1", "fwmark=2", "replace_peers=true"][..],
        &lines,
        &[lines[0], "remove=true", "", ""],
    ]
    .concat();
    assert_eq!(*text, expected.join("\n"));
}

proptest! {
    #[test]
    fn no_line_makes_the_parser_fail(lines in prop::collection::vec("[a-z_]{0,12}=?[ -~]{0,40}|public_key=(01){32}|set=1", 0..40)) {
        let mut parser = Parser::default();
        for line in &lines {
            if let Some(Err(errno)) = parser.line(line) {
                prop_assert!(errno.0 > 0);
            }
        }
    }
}
