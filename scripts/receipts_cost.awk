# From callgrind's counts: instructions in all, and those of receipts: what the functions of src/trace/ and the timing in
# src/node/inspect.rs run themselves, inlined code too, and what they call outside of these (the clock, memory).
#
# A document that somebody asked for is neither: it is not part of a request.

function named(table, text,    id) {
    id = text
    sub(/\).*/, "", id)
    if (text ~ /\) /) {
        sub(/^[^)]*\) /, "", text)
        names[table, id] = text
    }
    return names[table, id]
}

function times(name) {
    return name ~ /kvstore::trace::/ || \
        name ~ /inspect::.*::(begin_frames|end_frames|note_writes|note_replied|mark_replied|time_replies|trace_batch|trace_turn|trace_committed|newest_reading)$/
}

function asked(name) { return name ~ /_document|::inspect$|::on_inspect$|trace::Measured|::quantile|Durations::document/ }

/^fn=/ { function_name = named("fn", substr($0, 4)); next }
/^f[lie]=/ { file_name = named("fl", substr($0, 4)); next }
/^cfn=/ { callee = named("fn", substr($0, 5)); next }
/^cf[li]=/ { named("fl", substr($0, 5)); next }
/^calls=/ { is_call = 1; next }
/^[-+*0-9]/ && NF >= 2 {
    ours = times(function_name) || file_name ~ /src\/trace\/|src\/node\/inspect\.rs/
    if (asked(function_name))
        ours = 0
    if (!is_call)
        total += $2
    if (ours && (!is_call || !(times(callee) || asked(callee))))
        receipts += $2
    is_call = 0
}
END { printf "%d %d\n", total, receipts }
