-- slot_at(at, rotation_period): the slot that writers use at that time; what ev_slot is by default.
--
-- The clock alone decides, so a writer reads no state; nothing depends on two clocks agreeing, since rotate() looks
-- at what a slot holds and not at when it was written. Written as an expression without SET, parsed when it is created: so it means the same
-- under every search_path, and the server puts it into the inserting statement instead of calling it (25 us, PostgreSQL 15).
create or replace function pgtally.slot_at(at timestamptz, rotation_period interval) returns smallint
language sql stable parallel safe
return pg_catalog.mod(pg_catalog.int8(pg_catalog.float8div(
    pg_catalog.date_part('epoch', at), pg_catalog.date_part('epoch', rotation_period))), 3::pg_catalog.int8)::pg_catalog.int2;
