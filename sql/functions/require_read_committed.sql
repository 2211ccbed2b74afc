-- require_read_committed(): raises TL004 unless every statement of this transaction has a snapshot of its own.
create or replace function pgtally.require_read_committed() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception 'pgtally cannot do this in a transaction that is %', upper(current_setting('transaction_isolation'))
            using errcode = 'TL004', hint = 'Use a transaction that is READ COMMITTED: BEGIN ISOLATION LEVEL READ COMMITTED.';
    end if;
end
$$;
