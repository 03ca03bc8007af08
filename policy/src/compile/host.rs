//! Host endpoints: what a host sends, gets and forwards.
//!
//! ```text
//! prerouting  -299 host_untracked_in    doNotTrack
//!             -150 host_before_nat      preDNAT
//! forward       -4 host_forward_in      applyOnForward, before the policy of a pod that is to get it
//!               -1 host_forward_out     applyOnForward, behind it
//! input         -1 host_in              normal policy, failsafe ports first
//! output      -300 host_untracked_out   doNotTrack
//!               -1 host_out             normal policy, failsafe ports first
//! postrouting -150 host_translated      the same for what destination NAT has sent elsewhere: only here its
//!                                       output interface is the right one
//! ```
//!
//! An interface without an entry is asked what every interface is asked, if there is such an endpoint (`*`). What
//! comes from pods to the host is theirs to be asked about, and what the host sends to its pods nobody's.

use std::collections::BTreeMap;

use model::{
    Family,
    constant::ADMITTED_MARK,
    nft::{End, HookPoint, Match, Name, Rule, Sense, Statement, Verdict},
    policy::{Direction, Failsafe, Protocol},
};

use super::{
    Options, Ruleset,
    base::{Base, Entries, from_pod, invalid, to_pod},
    group::{self, Asked, Holding, Point, Question, Seat},
    verdict,
};

/// Behind the check of pods' source addresses (-300), before connection tracking (-200).
const UNTRACKED_IN: i32 = -299;
/// Before connection tracking.
const UNTRACKED_OUT: i32 = -300;
/// Behind connection tracking, before destination NAT (-100).
const MANGLE: i32 = -150;
/// Around the pods' chains, in front of the filters of others.
const BEFORE_PODS: i32 = -4;
const BEHIND_PODS: i32 = -1;

/// Where a host's packet is asked about of which destination NAT has changed the way.
const TRANSLATED: &str = "host_out_translated";

/// The verdicts of a question: of interfaces, and of all others.
#[derive(Clone)]
struct Answers {
    entries: Entries,
    other: Option<Verdict>,
}

/// Who is asked about the node's own interfaces.
pub(crate) struct Asking<'a, 'h> {
    pub(crate) interfaces: &'h [Seat],
    pub(crate) options: &'a Options,
    /// Returns who is asked about the interface of this place in the list.
    pub(crate) ask: &'h dyn Fn(usize, Question) -> Option<Asked<'a>>,
    pub(crate) hold: &'h mut Holding<'a, 'h>,
}

/// Writes the chains of the node's own interfaces; none where no host endpoint is there. `admits` says that there is
/// policy before tracking or translation.
pub(crate) fn write(mut asking: Asking<'_, '_>, admits: bool, rows: &mut Ruleset) {
    if asking.interfaces.is_empty() {
        return;
    }
    let options = asking.options;
    let mut answers = |point, direction| asking.answers(Question { point, direction }, rows);
    let untracked_in = answers(Point::Untracked, Direction::Ingress);
    let untracked_out = answers(Point::Untracked, Direction::Egress);
    let before_nat = answers(Point::PreDnat, Direction::Ingress);
    let forward_in = answers(Point::Forward, Direction::Ingress);
    let forward_out = answers(Point::Forward, Direction::Egress);
    let ingress = answers(Point::Normal, Direction::Ingress);
    let egress = answers(Point::Normal, Direction::Egress);

    if admits {
        early(untracked_in, untracked_out, before_nat, rows);
    }
    forward(forward_in, forward_out, admits, rows);
    local(options, ingress, egress, admits, rows);
}

/// Writes the chains before tracking and before translation.
fn early(untracked_in: Answers, untracked_out: Answers, before_nat: Answers, rows: &mut Ruleset) {
    let clean = || verdict::clear(ADMITTED_MARK, "nobody has let it in yet");

    let base = Base::new("host_untracked_in", HookPoint::Prerouting, UNTRACKED_IN);
    untracked_in.by_input(base.rules([clean()]), rows);
    let base = Base::new("host_untracked_out", HookPoint::Output, UNTRACKED_OUT);
    untracked_out.by_output(base.rules([clean()]), rows);
    let base = Base::new("host_before_nat", HookPoint::Prerouting, MANGLE)
        .established()
        .admitted(true);
    before_nat.by_input(base, rows);
}

/// Writes the chains around those of the pods.
fn forward(inward: Answers, outward: Answers, admits: bool, rows: &mut Ruleset) {
    let base = Base::new("host_forward_in", HookPoint::Forward, BEFORE_PODS)
        .established()
        .admitted(admits);
    inward.by_input(base, rows);
    let base = Base::new("host_forward_out", HookPoint::Forward, BEHIND_PODS).established();
    outward.by_output(base, rows);
}

/// Writes the chains of what the host itself sends and gets.
fn local(options: &Options, ingress: Answers, egress: Answers, admits: bool, rows: &mut Ruleset) {
    let base = Base::new("host_in", HookPoint::Input, BEHIND_PODS)
        .established()
        .admitted(admits)
        .rule(
            vec![from_pod(Sense::Is)],
            Statement::Accept,
            "a pod's, and asked about",
        )
        .rules(tunnels(options));
    ingress.by_input(base, rows);

    let outward = |base: Base| {
        base.admitted(admits)
            .rule(
                vec![to_pod(Sense::Is)],
                Statement::Accept,
                "for a pod of the host's own",
            )
            .rules(tunnels(options))
    };
    let base = Base::new("host_out", HookPoint::Output, BEHIND_PODS)
        .established()
        .rule(
            vec![Match::CtDnat],
            Statement::Accept,
            "its way is not known yet",
        );
    egress.clone().by_output(outward(base), rows);
    Base::new("host_translated", HookPoint::Postrouting, MANGLE)
        .established()
        .rule(
            vec![Match::CtDnat, Match::SourceLocal],
            Statement::Goto(TRANSLATED.into()),
            "its way is known now",
        )
        .write(rows);
    egress.by_output(outward(Base::without_hook(TRANSLATED)), rows);
}

impl Asking<'_, '_> {
    fn answers(&mut self, question: Question, rows: &mut Ruleset) -> Answers {
        let seats = self.interfaces.iter().enumerate();
        let asked = seats.filter_map(|(place, seat)| {
            // doNotTrack holds for interfaces with an endpoint of their own.
            let is_asked = question.point != Point::Untracked || seat.is_some();
            let asked = is_asked.then(|| (self.ask)(place, question)).flatten()?;

            asked.is_needed().then(|| (seat.clone(), asked))
        });
        let head = head(question, self.options);
        let leads = group::write(prefix(question.point), &head, asked, self.hold, rows);
        let leads: BTreeMap<Seat, Name> = leads.into_iter().collect();
        let mut answers = Answers {
            entries: Vec::new(),
            other: None,
        };
        for seat in self.interfaces {
            let chain = leads.get(seat).cloned();
            let verdict = chain.map_or(Verdict::Accept, Verdict::Goto);
            match seat {
                Some(interface) => answers.entries.push((interface.clone(), verdict)),
                None => answers.other = Some(verdict),
            }
        }

        answers
    }
}

/// Returns what the names of hosts' groups begin with.
const fn prefix(point: Point) -> &'static str {
    match point {
        Point::Normal => "host",
        Point::Forward => "host_forward",
        Point::PreDnat => "host_before_nat",
        Point::Untracked => "host_untracked",
    }
}

/// Returns what is decided before policy is asked.
fn head(question: Question, options: &Options) -> Vec<Rule> {
    let Question { point, direction } = question;
    let mut rules = Vec::new();
    if options.drops_invalid && point != Point::Untracked {
        rules.push(Rule {
            matches: vec![invalid()],
            ..verdict::denial(options, direction, "of no connection".to_owned())
        });
    }
    let (own, answered) = match direction {
        Direction::Ingress => (&options.failsafe_inbound, &options.failsafe_outbound),
        Direction::Egress => (&options.failsafe_outbound, &options.failsafe_inbound),
    };
    match point {
        Point::Forward => {}
        Point::Normal | Point::PreDnat => {
            rules.extend(discovery());
            rules.extend(failsafes(own, direction, End::Destination));
        }
        Point::Untracked => {
            rules.extend(discovery());
            rules.extend(failsafes(own, direction, End::Destination));
            // Connections are not known yet: an answer is known by its port.
            rules.extend(failsafes(answered, direction, End::Source));
        }
    }

    rules
}

impl Answers {
    fn by_input(self, base: Base, rows: &mut Ruleset) {
        let base = base.by_input(self.entries, rows);
        with_other(base, self.other).write(rows);
    }

    fn by_output(self, base: Base, rows: &mut Ruleset) {
        let base = base.by_output(self.entries, rows);
        with_other(base, self.other).write(rows);
    }
}

fn with_other(base: Base, other: Option<Verdict>) -> Base {
    match other {
        Some(Verdict::Goto(chain)) => base.rule(
            Vec::new(),
            Statement::Goto(chain),
            "every other interface's",
        ),
        Some(Verdict::Accept | Verdict::Drop | Verdict::Jump(_)) | None => base,
    }
}

/// Returns the rules for the tunnels' own packets.
fn tunnels(options: &Options) -> Vec<Rule> {
    let ports = options.tunnel_ports.iter();

    ports
        .map(|port| {
            let matches = vec![
                Match::Protocol(Sense::Is, Protocol::UDP.0),
                Match::Port(End::Destination, Sense::Is, *port, *port),
            ];

            verdict::plain(matches, Statement::Accept, "a tunnel's own")
        })
        .collect()
}

/// Types of ICMPv6 by which a host finds neighbours and routers, and says which groups it listens to (RFC 4861,
/// RFC 2710, RFC 3810): without them no failsafe port would be reached.
const DISCOVERY: [u8; 8] = [130, 131, 132, 133, 134, 135, 136, 143];

fn discovery() -> impl Iterator<Item = Rule> {
    DISCOVERY.into_iter().map(|kind| {
        let matches = vec![
            Match::Family(Family::V6),
            Match::Protocol(Sense::Is, Protocol::ICMPV6.0),
            Match::Icmp(Sense::Is, kind, None),
        ];

        verdict::plain(matches, Statement::Accept, "a host finds its neighbours")
    })
}

fn failsafes(list: &[Failsafe], direction: Direction, end: End) -> Vec<Rule> {
    list.iter()
        .map(|failsafe| {
            let mut matches = vec![
                Match::Protocol(Sense::Is, failsafe.protocol.0),
                Match::Port(end, Sense::Is, failsafe.port, failsafe.port),
            ];
            matches.extend(failsafe.net.map(|net| match direction {
                Direction::Ingress => Match::SourceNet(Sense::Is, net.trunc()),
                Direction::Egress => Match::DestinationNet(Sense::Is, net.trunc()),
            }));

            verdict::counted(matches, Statement::Accept, "failsafe port".to_owned())
        })
        .collect()
}
