import { defineCheck } from '../check.ts'

/** Whether pgtally is there, and of the version that this program is for. */
export const schemaVersion = defineCheck()({
  name: 'version of the schema',
  codes: { NOT_INSTALLED: 'error', SCHEMA_NOT_OWN: 'error', SCHEMA_TOO_OLD: 'error', SCHEMA_TOO_NEW: 'error', SCHEMA_HIDDEN: 'warning' },
  needsSchema: false,
  find: (_, { schema, schemaExists, schemaIsOwn, mayUseSchema, mayReadVersion, schemaVersion: version, expectedVersion, role, quotedRole, database, command }) => {
    const subject = { kind: 'schema', name: schema } as const
    if (!schemaExists) {
      return [{
        code: 'NOT_INSTALLED',
        subject: { kind: 'database', name: database },
        problem: `There is no schema "${schema}" in the database "${database}": pgtally is not installed here, or under another name.`,
        remedy: [{ advice: 'Make sure that this is the right database, and name the schema with --schema if it has another name. Otherwise install it:' }, { command: command('install') }],
      }]
    }
    if (!schemaIsOwn) {
      return [{
        code: 'SCHEMA_NOT_OWN',
        subject,
        problem: `The schema "${schema}" is not pgtally's: the table "installation" is missing.`,
        remedy: [{ advice: 'Name the right schema with --schema.' }],
      }]
    }
    if (!mayUseSchema || !mayReadVersion) {
      return [{
        code: 'SCHEMA_HIDDEN',
        subject: { kind: 'role', name: role },
        problem: `The role "${role}" may not read which version of pgtally is installed.`,
        remedy: [{ sql: `GRANT USAGE ON SCHEMA ${schema} TO ${quotedRole};\nGRANT SELECT ON ${schema}.installation TO ${quotedRole};` }],
      }]
    }
    if (version === undefined || version < expectedVersion) {
      return [{
        code: 'SCHEMA_TOO_OLD',
        subject,
        problem: `The schema has version ${version ?? 'unknown'}, and this pgtally needs ${expectedVersion}: its workers refuse to start.`,
        remedy: [{ advice: 'Upgrade the schema; likes go on meanwhile:' }, { command: command('install') }],
      }]
    }
    if (version > expectedVersion) {
      return [{
        code: 'SCHEMA_TOO_NEW',
        subject,
        problem: `The schema has version ${version}, and this pgtally knows ${expectedVersion} only: its workers refuse to start, and this diagnosis may be incomplete.`,
        remedy: [{ advice: 'Use the version of pgtally that installed it, or a newer one:' }, { command: 'npm install pgtally@latest' }],
      }]
    }
    return []
  },
})
