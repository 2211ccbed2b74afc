-- slot_at(at, rotation_period): the slot that writers use at that time.
--
-- The clock alone decides, so a writer reads no state; nothing depends on two clocks agreeing, since rotate() looks
-- at what a slot holds and not at when it was written. The generated triggers hold the same formula, written out.
create or replace function pgtally.slot_at(at timestamptz, rotation_period interval) returns smallint
language sql stable parallel safe set search_path = pg_catalog, pg_temp as $$
    select mod((date_part('epoch', at) / date_part('epoch', rotation_period))::bigint, 3)::smallint
$$;
