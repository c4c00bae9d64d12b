//! What a status says of elections, for a person: which members there are, who leads, and what comes when.

use serde_json::Value;

use super::error::printable;
use super::table::{lasting_ms, plain};

/// The object of the document that tells of elections; nothing where roles are fixed, or of an older node.
pub(super) fn election(document: &Value) -> Option<&Value> {
    document.get("election").filter(|election| election.is_object())
}

/// The verdict on a member that does not lead.
pub(super) fn follower_verdict(election: &Value, term: &str, leader: Option<&str>) -> String {
    match (election["state"].as_str().unwrap_or_default(), leader) {
        ("forming", _) => format!("forming — {}", text(&election["forming"])),
        ("campaigning", _) => format!("no leader known in term {term} — it asks for votes"),
        ("handing_over", _) => format!("handed over in term {term} — waits for the next leader"),
        (_, Some(leader)) => format!("follower of {leader} in term {term} — elected"),
        (_, None) => format!("no leader known in term {term} — an election is under way"),
    }
}

/// The lines under the verdict: label and parts.
pub(super) fn lines(election: &Value) -> Vec<(&'static str, Vec<Option<String>>)> {
    let ms = |label: &str, value: &Value| {
        value.as_i64().map(|ms| format!("{label}{}", lasting_ms(ms.max(0).unsigned_abs())))
    };
    let timer = &election["timer"];
    let members = election["members"].as_array().map_or(&[][..], Vec::as_slice);
    let member = |listed: &Value| {
        let own = if listed["is_self"] == true { " (this node)" } else { "" };
        Some(format!("{}{own}", text(&listed["address"])))
    };
    vec![
        (
            "election",
            vec![
                Some(text(&election["state"])),
                ms("timeout ", &election["timeout_ms"]),
                ms("lease ends in ", &timer["lease_ends_in_ms"]),
                ms("unheard it steps down in ", &timer["steps_down_in_ms"]),
                ms("unheard it campaigns in ", &timer["campaigns_in_ms"]),
                election["vote"].as_str().map(|vote| format!("voted for {}", printable(vote))),
            ],
        ),
        ("reads", vec![election["reads"].as_str().map(printable)]),
        (
            "members",
            members
                .iter()
                .map(member)
                .chain([election["majority"].as_u64().map(|count| format!("majority {}", plain(count)))])
                .collect(),
        ),
    ]
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(String::new, printable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_member_without_a_leader_says_what_it_does_about_that() {
        let state = |state: &str, leader| {
            follower_verdict(&json!({"state": state, "forming": "a:1 forms it"}), "2.0", leader)
        };
        assert_eq!(state("following", Some("b:1")), "follower of b:1 in term 2.0 — elected");
        assert!(state("waiting", None).contains("an election is under way"));
        assert!(state("campaigning", None).contains("asks for votes"));
        assert!(state("forming", None).contains("a:1 forms it"));
    }

    #[test]
    fn fixed_roles_and_older_nodes_have_nothing_to_show() {
        assert!(election(&json!({"election": null})).is_none() && election(&json!({})).is_none());
        let shown =
            lines(&json!({"state": "leading", "timeout_ms": 500, "timer": {"lease_ends_in_ms": 410}}));
        let parts: Vec<String> = shown.into_iter().flat_map(|(_, parts)| parts).flatten().collect();
        assert_eq!(parts, ["leading", "timeout 500 ms", "lease ends in 410 ms"]);
    }
}
