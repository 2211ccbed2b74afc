import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'

import { PgtallyError } from '../errors.ts'

const sqlRoot = new URL('../../sql/', import.meta.url)
export const oldestServer = 14

export interface SqlFiles {
  /** In order; the schema's version is their number. Every release that changes any SQL adds one. */
  migrations: string[]
  functions: string[]
}

/** pgtally's SQL, as it is for this schema. */
export async function readSqlFiles(schema: string): Promise<SqlFiles> {
  const read = async (folder: string) => {
    const files = (await readdir(new URL(`${folder}/`, sqlRoot))).toSorted()
    return Promise.all(
      files.map(async (file) => {
        const text = await readFile(new URL(`${folder}/${file}`, sqlRoot), 'utf8')
        // The files are written for the schema `pgtally`; nothing else in them is spelled like it with a dot behind.
        return text.replaceAll('pgtally.', `${schema}.`)
      }),
    )
  }
  const [migrations, functions] = await Promise.all([read('migrations'), read('functions')])
  return { migrations, functions }
}

/** The version that this pgtally installs. */
export async function knownVersion(): Promise<number> {
  return (await readdir(new URL('migrations/', sqlRoot))).length
}

/** Tells two states of the functions apart within one version, which happens in development only. */
export function hashOf({ functions }: SqlFiles): string {
  return createHash('sha256').update(functions.join('\n')).digest('hex')
}

/**
 * The SQL that installs pgtally (`from` 0) or upgrades it from that version, for a transaction of its own: what `install()` runs, `pgtally install --dry-run` and
 * `pgtally sql` print, and psql or a migration tool may run just as well.
 *
 * @throws PgtallyError INVALID_ARGUMENT (`from` is newer than this pgtally)
 */
export function installScript(schema: string, files: SqlFiles, from: number): string {
  const to = files.migrations.length
  if (from > to) throw new PgtallyError('INVALID_ARGUMENT', `There is no upgrade from schema version ${from}: this pgtally knows ${to} only. Use a newer one.`)
  const parts = [
    from === 0 ? `-- pgtally: installs version ${to} in the schema "${schema}".` : `-- pgtally: brings the schema "${schema}" from version ${from} to ${to}.`,
    '-- All of it is one transaction.',
    preamble(schema, from),
    ...files.migrations.slice(from),
    // They call one another, in whatever order they come. In place, so that grants and what the user has built on them stay; where one gets another result, the migration drops it first (IF EXISTS).
    'set local check_function_bodies = off;',
    ...files.functions,
    conclusion(schema, from, to, hashOf(files)),
  ]
  return `${parts.map((part) => part.trim()).join('\n\n')}\n`
}

/** Fails before anything is done where the script does not belong. Names are looked up in pg_catalog only, whatever others may have put on the installer's search_path. */
function preamble(schema: string, from: number): string {
  // In here, so that nothing is made where this has failed and the rest is tried all the same.
  const begin =
    from === 0
      ? `
    create schema ${schema};`
      : `
    if (select schema_version from ${schema}.installation) <> ${from} then
        raise exception 'The schema "${schema}" has version %, and this upgrades version ${from}', (select schema_version from ${schema}.installation)
            using hint = 'Print the upgrade for that version.';
    end if;
    -- New functions that run with their owner's rights must not be somebody else's.
    if (select nspowner from pg_namespace where nspname = '${schema}') <> (select oid from pg_roles where rolname = current_user) then
        raise exception 'The schema "${schema}" belongs to the role "%", which alone can upgrade it', (select pg_get_userbyid(nspowner) from pg_namespace where nspname = '${schema}')
            using errcode = 'insufficient_privilege', hint = 'Use SET ROLE.';
    end if;`
  return `
do $pgtally$
begin
    perform pg_catalog.set_config('pgtally.transaction', pg_catalog.pg_current_xact_id()::pg_catalog.text, true),
        pg_catalog.set_config('pgtally.search_path', pg_catalog.current_setting('search_path'), true),
        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
end
$pgtally$;
do $pgtally$
begin
    ${requireTransaction}
    if current_setting('server_version_num')::integer < ${oldestServer}0000 then
        raise exception 'The server is PostgreSQL %, and pgtally needs ${oldestServer} or later', current_setting('server_version');
    end if;
    perform ${lockInstallation(schema)};${begin}
end
$pgtally$;`
}

const requireTransaction = `if pg_catalog.current_setting('pgtally.transaction', true) is distinct from pg_catalog.pg_current_xact_id()::pg_catalog.text then
        raise exception 'This must be run as one transaction' using hint = 'With psql: psql --single-transaction --set ON_ERROR_STOP=1.';
    end if;`

/** One at a time; until the end of the transaction. */
export function lockInstallation(schema: string): string {
  return `pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgtally install ${schema}', 0::pg_catalog.int8))`
}

function conclusion(schema: string, from: number, to: number, hash: string): string {
  const upgraded =
    from === 0
      ? ''
      : `
    -- What an older version had: whatever this transaction has not written, but for what is made for each queue. That is written anew.
    for old in
        select p.oid::regprocedure::text as signature from pg_proc p
        where p.pronamespace = '${schema}'::regnamespace and p.prokind in ('f', 'p') and p.proname !~ '^(source|insert_event)_[0-9]' and age(p.xmin) > 0
    loop
        execute 'drop routine ' || old.signature;
    end loop;
    perform ${schema}.create_source(s.queue_id) from ${schema}.source s where exists (select from pg_class c where c.oid = s.source_table);`
  return `
do $pgtally$
declare
    old record;
begin
    ${requireTransaction}${upgraded}
    perform ${schema}.renew_access();
    delete from ${schema}.installation;
    insert into ${schema}.installation (schema_version, functions_hash) values (${to}, '${hash}');
    perform set_config('search_path', current_setting('pgtally.search_path'), true), set_config('check_function_bodies', 'on', true);
end
$pgtally$;`
}

/** As a transaction, for psql and whoever sends it as it is. */
export function asTransaction(script: string): string {
  return `begin;\n\n${script}\ncommit;\n`
}
