-- Shared by the scripts that follow it: what is held for an outbox, and whether the stream still bears it out.
--
-- KEYS[1]  the stream
-- KEYS[2]  a hash: outbox id -> "<last> <digest> <added> <trimmed> <floor> <run> <mark>"
-- ARGV[1]  outbox id
--
-- last     the id of the last entry of the batch that left the mark
-- digest   of that entry's payload
-- added    how many entries had ever been added to the stream by then; '-' on a server that does not count them
--          (Redis 6.2)
-- trimmed  how many entries, which nobody is known to have read, the batches of this outbox trimmed so far
-- floor    the newest id in the stream before the first batch of the run
-- run      the id of the last run; '-' for none
-- mark     opaque text, possibly with blanks
--
-- Version 0.1 wrote a position alone, as a decimal number; then that text is the mark.

local stream, marks, outbox = KEYS[1], KEYS[2], ARGV[1]

-- Numbers and ids are compared as text: Lua's numbers would round those beyond 2^53.
local function is_before(a, b)
    local a1, a2 = string.match(a, '^(%d+)%-(%d+)$')
    local b1, b2 = string.match(b, '^(%d+)%-(%d+)$')
    if a1 == b1 then
        a1, b1 = a2, b2
    end
    if #a1 ~= #b1 then
        return #a1 < #b1
    end
    return a1 < b1
end

local function digest(payload)
    return string.sub(redis.sha1hex(payload), 1, 16)
end

local function by_name(flat)
    local found = {}
    for i = 1, #flat, 2 do
        found[flat[i]] = flat[i + 1]
    end
    return found
end

-- Returns nil if there is no stream. Raises it here, before anything is written, if the key holds another type or the
-- user may not ask.
local function describe_stream()
    local reply = redis.pcall('XINFO', 'STREAM', stream)
    if reply.err then
        if string.find(reply.err, 'no such key', 1, true) then
            return nil
        end
        redis.call('XINFO', 'STREAM', stream) -- raises it in the server's own words
    end
    return by_name(reply)
end

local function nothing(trimmed)
    return {last = '0-0', digest = '-', added = '-', trimmed = trimmed, floor = '0-0', run = '-', mark = ''}
end

-- Returns the record as it is stored, in parts; nil for a value that was not written by this script.
local function parse(value)
    if value == '' or value == '0' then
        return nothing(0)
    end
    if string.match(value, '^%d+$') then
        return {trimmed = 0, floor = '0-0', run = '-', mark = value}
    end
    local last, digest, added, trimmed, floor, run, mark =
        string.match(value, '^(%d+%-%d+) (%S+) (%S+) (%d+) (%d+%-%d+) (%S+) (.*)$')
    if not last then
        return nil
    end
    return {
        last = last, digest = digest, added = added, trimmed = tonumber(trimmed), floor = floor, run = run, mark = mark
    }
end

local function compose(record)
    return string.format(
        '%s %s %s %.0f %s %s %s',
        record.last, record.digest, record.added, record.trimmed, record.floor, record.run, record.mark
    )
end

-- Whether what we added is still in this very stream, or was taken out of it entry by entry. The answer is no where the
-- stream was deleted, evicted, emptied with the database, set back, or made from scratch by another program.
local function bears_out(record, info)
    if not info then
        return false
    end
    if not record.last then
        return true -- version 0.1 wrote nothing that could be verified
    end
    if is_before(info['last-generated-id'], record.last) then
        return false
    end
    local entry = redis.call('XRANGE', stream, record.last, record.last)[1]
    if entry then
        return digest(entry[2][2]) == record.digest -- a new stream may give an id again, within the same millisecond
    end
    -- It was taken out. How many entries were, in all?
    local first, added, then_added = info['first-entry'], info['entries-added'], tonumber(record.added)
    local others_left = first and is_before(first[1], record.last)
    if added and then_added then
        return added >= then_added and added - info['length'] >= (others_left and 1 or then_added)
    end
    return others_left or (not first and info['last-generated-id'] == record.last)
end

-- Returns the record, its mark '' if nothing is held (any more), the stream's description, and the value as stored.
-- The record is nil if the value is not ours.
local function held()
    local value = redis.call('HGET', marks, outbox) or ''
    local record, info = parse(value), describe_stream()
    if record and record.mark ~= '' and not bears_out(record, info) then
        record = nothing(record.trimmed)
        -- Forgotten at once: what the new stream tells could later look as if it had been ours. If this cannot be
        -- written now, neither can a batch.
        value = compose(record)
        redis.pcall('HSET', marks, outbox, value)
    end
    return record, info, value
end
