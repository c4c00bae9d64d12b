//! Who a node is: the role it has now, and the role it takes when it starts.

use crate::meta::StoredRole;
use crate::node::follower::Follower;
use crate::node::leader::Leader;

/// The role the flags ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleFlag {
    /// `--role=leader`.
    Leader,
    /// `--role=follower`.
    Follower,
    /// `--role=auto`.
    Auto,
}

impl RoleFlag {
    fn name(self) -> &'static str {
        match self {
            RoleFlag::Leader => "leader",
            RoleFlag::Follower => "follower",
            RoleFlag::Auto => "auto",
        }
    }
}

/// The role, with all that only this role has.
#[derive(Debug)]
pub enum Role {
    /// Takes writes.
    Leader(Box<Leader>),
    /// Takes a leader's records.
    Follower(Follower),
    /// Led until it met a higher term; waits for an operator's `follow` or `promote`.
    Deposed,
}

impl Role {
    /// The word for status and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Role::Leader(_) => "leader",
            Role::Follower(_) => "follower",
            Role::Deposed => "deposed",
        }
    }
}

/// What a node does about its role when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartRole {
    /// Lead, in a term one start higher.
    Lead,
    /// Follow.
    Follow,
    /// Wait for an operator.
    Deposed,
    /// Follow whoever is elected, or campaign; before that, form the cluster or be told of it.
    Elect,
}

impl StartRole {
    /// Whether a damaged log is cut in front of the damage and fetched again: others may hold what it held.
    pub fn fetches_again(&self) -> bool {
        matches!(self, StartRole::Follow | StartRole::Elect)
    }
}

/// Decides the role at start. The flags say what a new data directory becomes; later `promote` and `follow`
/// are the operator's newer word, and the directory keeps it. The text is a warning to log.
pub fn start_role(
    stored: StoredRole,
    flag: RoleFlag,
    port: u16,
) -> Result<(StartRole, Option<String>), String> {
    use RoleFlag::{Auto, Follower as F, Leader as L};
    let outranked = |role: &str, undo: &str| {
        Some(format!(
            "W004 --role={} does not apply: {role}, and the data directory remembers it; to change that run \
             `kv_client --port {port} {undo}`",
            flag.name()
        ))
    };
    match (stored, flag) {
        (StoredRole::Unset | StoredRole::LeaderByFlags | StoredRole::LeaderByPromotion, L) => {
            Ok((StartRole::Lead, None))
        }
        (StoredRole::Unset | StoredRole::FollowerByFlags | StoredRole::FollowerByCommand, F) => {
            Ok((StartRole::Follow, None))
        }
        (StoredRole::LeaderByPromotion, F) => {
            Ok((StartRole::Lead, outranked("this node was promoted to leader", "follow ADDR")))
        }
        (StoredRole::FollowerByCommand, L) => {
            Ok((StartRole::Follow, outranked("an operator told this node to follow", "promote")))
        }
        (StoredRole::Unset | StoredRole::Elected, Auto) => Ok((StartRole::Elect, None)),
        (_, Auto) => Err(
            "the data directory belongs to a node whose role was fixed by flags or commands, and the flags say \
             --role=auto: nothing was changed. Start it with the role it had, or name a --data-dir that is empty; a \
             node that is to be elected begins as a new one"
                .to_owned(),
        ),
        (StoredRole::Deposed, L | F) => Ok((
            StartRole::Deposed,
            Some(format!(
                "W005 this node led until it met a higher term, and takes no writes; run `kv_client --port {port} \
                 follow ADDR` to make it a follower of the node that leads now, or `promote` to make it lead again"
            )),
        )),
        (StoredRole::Elected, L | F) => Err(format!(
            "the data directory belongs to a member of a cluster that elects its leader and the flags say --role={}: \
             nothing was changed. Start it with --role=auto, or name another --data-dir",
            flag.name()
        )),
        (StoredRole::LeaderByFlags, F) => Err(format!(
            "the data directory belongs to a leader and the flags say --role=follower: nothing was changed. Start it \
             with --role=leader and run `kv_client --port {port} follow ADDR`, or name another --data-dir"
        )),
        (StoredRole::FollowerByFlags, L) => Err(format!(
            "the data directory belongs to a follower and the flags say --role=leader: nothing was changed. Start it \
             with --role=follower and run `kv_client --port {port} promote`, or name another --data-dir"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_at_start_is_total_and_an_operators_command_outranks_the_flags() {
        use StoredRole::*;
        let start =
            |stored, flag| start_role(stored, flag, 9001).map(|(role, warning)| (role, warning.is_some()));
        let (lead, follow) = (StartRole::Lead, StartRole::Follow);
        assert_eq!(start(Unset, RoleFlag::Leader), Ok((lead.clone(), false)));
        assert_eq!(start(Unset, RoleFlag::Follower), Ok((follow.clone(), false)));
        assert_eq!(start(LeaderByFlags, RoleFlag::Leader), Ok((lead.clone(), false)));
        assert_eq!(start(FollowerByFlags, RoleFlag::Follower), Ok((follow.clone(), false)));
        assert_eq!(start(LeaderByPromotion, RoleFlag::Follower), Ok((lead.clone(), true)));
        assert_eq!(start(LeaderByPromotion, RoleFlag::Leader), Ok((lead, false)));
        assert_eq!(start(FollowerByCommand, RoleFlag::Leader), Ok((follow.clone(), true)));
        assert_eq!(start(FollowerByCommand, RoleFlag::Follower), Ok((follow, false)));
        for flag in [RoleFlag::Leader, RoleFlag::Follower] {
            assert_eq!(start(Deposed, flag), Ok((StartRole::Deposed, true)));
            let refusal = start(Elected, flag).unwrap_err();
            assert!(refusal.contains("nothing was changed") && refusal.contains("--role=auto"), "{refusal}");
        }
        for stored in [Unset, Elected] {
            assert_eq!(start(stored, RoleFlag::Auto), Ok((StartRole::Elect, false)));
        }
        for stored in [LeaderByFlags, FollowerByFlags, LeaderByPromotion, FollowerByCommand, Deposed] {
            let refusal = start(stored, RoleFlag::Auto).unwrap_err();
            assert!(refusal.contains("nothing was changed") && refusal.contains("--role=auto"), "{refusal}");
        }
        assert!(start(LeaderByFlags, RoleFlag::Follower).unwrap_err().contains("nothing was changed"));
        assert!(start(FollowerByFlags, RoleFlag::Leader).unwrap_err().contains("promote"));
    }
}
