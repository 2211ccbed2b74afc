-- require_owner(): raises 42501 unless the current role is the one that pgtally belongs to. What a superuser or a member of that role made would be his own: functions that run with their
-- owner's rights could not use it, or would have more rights than meant.
create or replace function pgtally.require_owner() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'pgtally.queue'::regclass);
begin
    if owner <> current_user then
        raise exception 'pgtally belongs to the role "%", which alone defines counters and queues (SET ROLE %)', owner, quote_ident(owner)
            using errcode = 'insufficient_privilege';
    end if;
end
$$;
