import { defineCheck } from '../check.ts'
import type { Found } from '../finding.ts'

const oldestMajor = 14

// The last days of each, from https://www.postgresql.org/support/versioning/.
const endsOfLife: Readonly<Record<number, string>> = { 14: '2026-11-12', 15: '2027-11-11', 16: '2028-11-09', 17: '2029-11-08', 18: '2030-11-14' }

// With fewer corrections than this, one runs into what others have found already. 14.4 repaired CREATE INDEX CONCURRENTLY, which some remedies use.
const earliestMinor: Readonly<Record<number, number>> = { 14: 4 }
const earliestMinorElse = 2

type Code = 'SERVER_TOO_OLD' | 'SERVER_END_OF_LIFE' | 'SERVER_MINOR_OLD'

/** Judges a version (as `server_version_num`) on a day. */
export function judgeServer(version: number, versionName: string, today: Date): Found<Code>[] {
  const major = Math.floor(version / 10_000)
  const minor = version % 10_000
  const subject = { kind: 'server', name: `PostgreSQL ${versionName}` } as const
  if (major < oldestMajor) {
    const remedy = [{ advice: `Upgrade the server to PostgreSQL ${oldestMajor} or later, then run: pgtally rebase` }]
    return [{ code: 'SERVER_TOO_OLD', subject, problem: `pgtally needs PostgreSQL ${oldestMajor} or later.`, remedy }]
  }
  const found: Found<Code>[] = []
  const endOfLife = endsOfLife[major]
  if (endOfLife !== undefined && today > new Date(`${endOfLife}T23:59:59Z`)) {
    found.push({
      code: 'SERVER_END_OF_LIFE',
      subject,
      problem: `PostgreSQL ${major} gets no corrections any more since ${endOfLife}, not even of security holes.`,
      remedy: [{ advice: 'Plan an upgrade to a newer major version. After pg_upgrade or a restore, run: pgtally rebase' }],
    })
  }
  if (minor < (earliestMinor[major] ?? earliestMinorElse)) {
    found.push({
      code: 'SERVER_MINOR_OLD',
      subject,
      problem: `${major}.${minor} is an early release of PostgreSQL ${major}, whose known faults are mended in later ones${major === 14 ? ': CREATE INDEX CONCURRENTLY may leave a broken index' : ''}.`,
      remedy: [{ advice: `Install the latest ${major}.x and restart the server; the data stays as it is.` }],
    })
  }
  return found
}

/** Too old for pgtally, or for anybody. */
export const serverVersion = defineCheck()({
  name: 'version of the server',
  codes: { SERVER_TOO_OLD: 'error', SERVER_END_OF_LIFE: 'warning', SERVER_MINOR_OLD: 'warning' },
  needsSchema: false,
  find: (_, { serverVersion: version, serverVersionName }) => judgeServer(version, serverVersionName, new Date()),
})
